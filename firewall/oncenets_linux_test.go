package firewall

import (
	"testing"
	"time"
)

// TestOnceBesideNetworks: rules for networks of another width, which load the guard anew, give and take no flow at the
// ports where a grant admits one.
func TestOnceBesideNetworks(t *testing.T) {
	someOnce(t, func(t *testing.T, fl *flows) {
		networks := []string{"198.51.100.0/24", "198.51.100.0/25", "2001:db8:100::/48", "2001:db8:100::/56"}
		widen := func() {
			g := netGrant("bob", networks[0], long)
			networks = networks[1:]
			g.Service, g.Ports = "web", rangesOf("tcp/80")
			fl.must(fl.Grant(fl.Context(), []Grant{g}, time.Now()))
		}
		fl.becomes(func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/80")) })
		fl.knock("alice")
		widen()
		first := fl.gets1()
		fl.shut()
		widen()
		fl.shut()
		first.lives()
		fl.knock("alice")
		widen()
		fl.gets1()
		fl.shut()
	})
}
