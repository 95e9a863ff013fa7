package firewall

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// TestForwardBare: the guard that stands while the kernel starts connection tracking delivers nothing for a forwarded
// port to a program here, whoever has a grant.
func TestForwardBare(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			way := forwarding{name: "port"}
			s := k.newSite(t, func(c *Config) {
				c.Forwards = way.forwards()
				cutting("tcp/2222", "udp/2222")(c)
			})
			s.listens(s.gw, ":2222")
			s.listens(s.gw, ":2300")
			s.open()
			s.bare(guard.Plan{Leases: []guard.Lease{{Element: guard.Element{Proto: service.TCP, Port: 2222,
				Source: netip.MustParseAddr(f.alice)}, Until: time.Now().Add(long)}}})
			s.dark(f.alice, f.gateway, "2222")
			s.dark(f.alice, f.gateway, "2300")
		}
	})
}
