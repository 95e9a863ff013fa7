package firewall

import (
	"errors"

	"sallyport/firewall/internal/nftables"
)

// Rules returns the guard as text for nft, without grants, for the administrator's own rule file. nft -f loads it,
// alone or after a flush in the same file; a daemon with PersistFile takes over the resulting table and adds live
// grants. The text comes from the same rules that Load puts into the kernel.
func Rules(c Config) (string, error) {
	c.setDefaults()
	if err := c.check(); err != nil {
		return "", err
	}
	if c.Mode != Guard {
		return "", errors.New("mode admit has no guard: your own table closes the ports")
	}
	if c.Backend == BackendIptables {
		return "", errors.New("the guard can be printed only for nft, but the backend is iptables")
	}
	return nftables.Text(c.spec()), nil
}

// CanPersist reports whether this kernel can keep the guard when another tool flushes the rule set while no daemon
// runs. It changes nothing and needs CAP_NET_ADMIN.
func CanPersist() bool { return nftables.CanPersist() }
