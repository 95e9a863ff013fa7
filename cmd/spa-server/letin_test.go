package main

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestLetIn: a client lets in a network around its own address and goes on when its address changes within it; the
// phone opens for the laptop. Beyond what its file allows nothing is let in, and it is told why.
func TestLetIn(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			g.guardBy(backend)
			for _, a := range []string{"198.51.100.7/32", "198.51.100.8/32", "198.51.101.7/32", "203.0.113.9/32",
				"2001:db8:100::7/128", "2001:db8:100:1::7/128"} {
				lab.Must(t, g.client.AddAddr("vc", a))
			}
			lab.Must(t, g.host.Route("198.51.100.0/23", "192.0.2.2"))
			lab.Must(t, g.host.Route("203.0.113.0/24", "192.0.2.2"))
			lab.Must(t, g.host.Route("2001:db8:100::/48", "2001:db8::2"))
			g.must("spa-keygen", "set", "alice", "widest4=24", "widest6=48", "delegate=203.0.113.0/28", "--config", g.dir)
			g.serve(":22")
			g.start()
			g.letInRefused()
			g.letInLaptop()
			g.letInChanging()
		})
	}
}

// letInChanging: within its /24, a client's address changes in mid-session: it renews and closes from the new one.
func (g *gateway) letInChanging() {
	g.t.Helper()
	const port = "192.0.2.1:22"
	out := g.mustOpen("--source", "198.51.100.7", "--let-in", "198.51.100.0/24")
	if !strings.Contains(out, "for 198.51.100.0/24") {
		g.t.Errorf("open says %q, want the network", out)
	}
	session := g.echoing("198.51.100.7", port)
	g.wantOpen("198.51.100.8", port, "in its network")
	g.wantDark("198.51.101.7", port, "outside its network")
	if !strings.Contains(g.must("spa-server", "grants", "--config", g.dir), " 198.51.100.0/24 ") {
		g.t.Errorf("spa-server grants: %+v", g.grants())
	}
	before := len(g.grants())
	lab.Must(g.t, g.client.DelAddr("vc", "198.51.100.7/32"))
	second := g.echoing("198.51.100.8", port)
	g.mustOpen("--source", "198.51.100.8", "--let-in", "198.51.100.0/24", "--for", "1m")
	if n := len(g.grants()); n != before {
		g.t.Errorf("%d grants after a renewal from another address, want %d as before", n, before)
	}
	lab.Must(g.t, g.client.AddAddr("vc", "198.51.100.7/32"))
	lab.Must(g.t, lab.Echoes(session, "still here", lab.Patience))
	if out, code := g.run(g.client, "spa-client", "close", "ssh", "--host", "gw", "--config", g.home, "--source",
		"198.51.100.8"); code != 0 {
		g.t.Errorf("close: exit %d\n%s", code, out)
	}
	g.wantDark("198.51.100.7", port, "after the close from another address")
	lab.Must(g.t, lab.Echoes(session, "still here", lab.Patience))
	g.mustOpen("--source", "198.51.100.8", "--let-in", "198.51.100.0/24")
	g.server.stop(9)
	g.start()
	g.wantOpen("198.51.100.7", port, "after kill -9 and a start")
	g.wantDark("198.51.101.7", port, "after kill -9 and a start")
	out = g.must("spa-server", "revoke", "198.51.100.99", "--cut", "--config", g.dir)
	if !strings.Contains(out, "198.51.100.0/24") {
		g.t.Errorf("revoke says %q, want the network that it ended", out)
	}
	for _, c := range []net.Conn{session, second} {
		if lab.Echoes(c, "still here", silence) == nil {
			g.t.Error("a session of the network outlived --cut")
		}
	}
	g.wantDark("198.51.100.8", port, "after the revocation")
}

// letInLaptop: the phone opens for the laptop, and its own address stays out.
func (g *gateway) letInLaptop() {
	g.t.Helper()
	out := g.mustOpen("--source", "192.0.2.2", "--let-in", "203.0.113.9", "--json")
	var answer struct {
		LetIn  string     `json:"let_in"`
		Source netip.Addr `json:"source"`
	}
	lab.Must(g.t, json.Unmarshal([]byte(out), &answer))
	if answer.LetIn != "203.0.113.9" || answer.Source.String() != "203.0.113.9" {
		g.t.Errorf("open --json: %s", out)
	}
	g.wantOpen("203.0.113.9", "192.0.2.1:22", "the laptop")
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the phone")
	r, alice := request(), sender(g.profile())
	r.LetIn = netip.MustParsePrefix("2001:db8:100::/48")
	receipt := g.knockAt("2001:db8:100::7", "[2001:db8::1]:62201", g.seal(r, alice), alice, lab.Patience)
	if receipt == nil || receipt.LetIn != r.LetIn {
		g.t.Errorf("got %+v for an IPv6 network", receipt)
	}
	g.wantOpen("2001:db8:100:1::7", "[2001:db8::1]:22", "in its /48")
}

// letInRefused: each network that the file does not allow, or that is the gateway's own.
func (g *gateway) letInRefused() {
	g.t.Helper()
	for _, network := range []string{"198.51.100.0/23", "198.51.101.0/24", "203.0.113.0/27", "192.0.2.0/24",
		"198.51.101.7"} {
		out, code := g.open("--source", "198.51.100.8", "--let-in", network)
		if code != 3 || !strings.Contains(out, "may not let in") || !strings.Contains(out, "widest4=24") {
			g.t.Errorf("%s: exit %d\n%s", network, code, out)
		}
	}
	out, code := g.open("--source", "192.0.2.2", "--let-in", "192.0.2.0/24")
	if code != 3 || !strings.Contains(out, "may not let in") {
		g.t.Errorf("the gateway's own network: exit %d\n%s", code, out)
	}
	for _, network := range []string{"0.0.0.0/0", "::/0", "198.51.100.7/24", "fe80::/64", "127.0.0.1"} {
		if out, code := g.open("--let-in", network); code != 2 {
			g.t.Errorf("%s: exit %d\n%s", network, code, out)
		}
	}
	g.wantDark("198.51.101.7", "192.0.2.1:22", "after the refusals")
}

// echoing returns a session from an address of the client host.
func (g *gateway) echoing(from, to string) net.Conn {
	g.t.Helper()
	c := lab.Value(lab.Dial(g.client, from, to, lab.Patience))(g.t)
	g.t.Cleanup(func() { c.Close() })
	lab.Must(g.t, lab.Echoes(c, "is anybody there?", lab.Patience))
	return c
}
