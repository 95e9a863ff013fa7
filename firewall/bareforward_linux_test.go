package firewall

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestForwardBare: the guard that stands while the kernel starts connection tracking delivers nothing for a forwarded
// port to a program here, whoever has a grant. The port with that number of a machine behind is another one.
func TestForwardBare(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			way := forwarding{name: "port"}
			s := k.newSite(t, func(c *Config) {
				c.Forwards = way.forwards()
				cutting("tcp/2222", "udp/2222")(c)
				c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])},
					Ports: rangesOf("tcp/2222")}}
			})
			lab.Value(lab.EchoServer(s.behind(), ":2222"))(t)
			s.listens(s.gw, ":2222")
			s.listens(s.gw, ":2300")
			s.open()
			here := guard.Element{Proto: service.TCP, Port: 2222, Source: netip.MustParseAddr(f.alice)}
			there := here
			there.To = netip.MustParseAddr(innerAddr[f.name])
			s.bare(guard.Plan{Leases: []guard.Lease{{Element: here, Until: time.Now().Add(long)},
				{Element: there, Until: time.Now().Add(long)}}})
			s.dark(f.alice, f.gateway, "2222")
			s.dark(f.alice, f.gateway, "2300")
			s.connect(f.alice, innerAddr[f.name], "2222")
			s.dark(f.stranger, innerAddr[f.name], "2222")
		}
	})
}
