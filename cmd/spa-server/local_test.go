package main

import (
	"strings"
	"testing"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestLocalRoute: an address that is the gateway's only through a local route, as with cloud agents and load balancers,
// is guarded and opens to a knock like any other, and check takes it for the gateway's.
func TestLocalRoute(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			g := newGateway(t)
			g.guardBy(backend)
			g.rewrite("server.toml", `192\.0\.2\.1`, "198.51.100.7")
			g.serve(":22")
			g.start()
			alice := sender(g.profile())
			for _, to := range []struct{ prefix, via, from, port string }{
				{"198.51.100.7/32", "192.0.2.1", "192.0.2.2", "198.51.100.7"},
				{"203.0.113.0/24", "192.0.2.1", "192.0.2.3", "203.0.113.99"},
				{"2001:db8:7::/48", "2001:db8::1", "2001:db8::2", "[2001:db8:7:1::5]"},
			} {
				lab.Must(t, g.client.Route(to.prefix, to.via))
				if g.knockAt(to.from, to.port+":62201", g.seal(request(), alice), alice, silence) != nil {
					t.Errorf("a knock on %s is answered before the route is there", to.port)
				}
				lab.Must(t, g.host.Local(to.prefix))
				g.wantDark(to.from, to.port+":22", "before the knock")
				receipt := g.knockAt(to.from, to.port+":62201", g.seal(request(), alice), alice, wait(true))
				if receipt == nil || receipt.Status != spa.Granted {
					t.Fatalf("a knock on %s: receipt %v\nserver:\n%s", to.port, receipt, g.server.log())
				}
				g.wantOpen(to.from, to.port+":22", "after the knock")
			}
			if out, _ := g.run(g.host, "spa-server", "check", "--config", g.dir); strings.Contains(out, "address: ") {
				t.Errorf("check says of an address that is the gateway's own:\n%s", out)
			}
		})
	}
}
