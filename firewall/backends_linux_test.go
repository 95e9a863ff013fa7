package firewall

import (
	"testing"
)

// kind is a backend as the tests set it up, and how another tool empties its tables.
type kind struct {
	name   string
	change func(*Config)
}

// kinds are all that there are: what is promised of access holds for each.
func kinds() []kind {
	return []kind{
		{"nftables", func(*Config) {}},
		{"iptables-nft", func(c *Config) { c.Backend = BackendIptables }},
	}
}

func everyBackend(t *testing.T, do func(*testing.T, kind)) {
	t.Helper()
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) { do(t, k) })
	}
}

func (k kind) newSite(t *testing.T, change func(*Config)) *site {
	t.Helper()
	return newSite(t, func(c *Config) {
		k.change(c)
		if change != nil {
			change(c)
		}
	})
}

func (k kind) guarded(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := k.newSite(t, change)
	s.open()
	s.load(0)
	return s
}
