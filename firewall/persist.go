package firewall

import (
	"sallyport/firewall/internal/nftables"
)

// CanPersist reports whether this kernel can keep the guard over a foreign flush of the
// rule set while no daemon runs. It changes nothing and needs CAP_NET_ADMIN.
func CanPersist() bool { return nftables.CanPersist() }
