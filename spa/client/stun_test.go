package client

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/net/stun"

	"sallyport/spa"
)

var (
	stun4 = netip.MustParseAddr("192.0.2.33")
	stun6 = netip.MustParseAddr("2001:db8::33")
	seen4 = netip.MustParseAddr("198.51.100.7")
	seen6 = netip.MustParseAddr("2001:db8:2::7")
)

// told returns the answer of an honest server.
func told(request []byte, to netip.AddrPort) []byte {
	id := stun.TxID(request[8:20])
	if to.Addr().Is4() {
		return stun.Response(id, netip.AddrPortFrom(seen4, 4444))
	}
	return stun.Response(id, netip.AddrPortFrom(seen6, 4444))
}

// natted returns a gateway with a STUN server, whose packets go to udp.
func natted(t *testing.T, udp func(c *fakeConn, request []byte, to netip.AddrPort)) (*gateway, *fakeNet) {
	g, n := dualStack(t)
	n.hosts["stun.example.net"] = []netip.Addr{stun6, stun4}
	knock := n.udp
	n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
		if to.Addr() != stun4 && to.Addr() != stun6 {
			return knock(c, packet, to)
		}
		udp(c, packet, to)
		return nil
	}
	return g, n
}

func honest(c *fakeConn, request []byte, to netip.AddrPort) {
	c.in <- delivery{data: told(request, to), from: to}
}

func stunCommand(t *testing.T, source string) Command {
	c := open()
	c.Source = mustSource(t, source)
	return c
}

// The client states the address that the server returns, one for each family.
func TestSTUN(t *testing.T) {
	for source, port := range map[string]uint16{"stun:stun.example.net": 3478, "stun:stun.example.net:3479": 3479} {
		synctest.Test(t, func(t *testing.T) {
			g, n := natted(t, func(c *fakeConn, request []byte, to netip.AddrPort) {
				if to.Port() != port {
					t.Errorf("asked port %d, want %d", to.Port(), port)
				}
				honest(c, request, to)
			})
			plan := mustPrepare(t, g, n, stunCommand(t, source))
			if len(plan.Routes) != 2 || plan.Routes[0].Source != seen4 || plan.Routes[1].Source != seen6 {
				t.Errorf("got %+v, want both addresses stated", plan.Routes)
			}
		})
	}
}

// A late answer is requested again; forged and broken ones are ignored.
func TestSTUNBelievesNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		g, n := natted(t, func(c *fakeConn, request []byte, to netip.AddrPort) {
			good := told(request, to)
			forged := stun.Response(stun.NewTxID(), netip.MustParseAddrPort("192.0.2.66:1"))
			c.in <- delivery{data: forged, from: to}
			c.in <- delivery{data: stun.Response(stun.TxID(request[8:20]), netip.MustParseAddrPort("192.0.2.66:1")),
				from: netip.MustParseAddrPort("192.0.2.66:3478")}
			c.in <- delivery{data: good[:len(good)-3], from: to}
			c.in <- delivery{err: errors.New("connection refused")}
			if asked++; asked == 3 {
				honest(c, request, to)
			}
		})
		g.profile.Address = gate4.String()
		start := time.Now()
		plan := mustPrepare(t, g, n, stunCommand(t, "stun:stun.example.net"))
		if plan.Routes[0].Source != seen4 {
			t.Errorf("states %v, want %v", plan.Routes[0].Source, seen4)
		}
		if waited := time.Since(start); waited < 1500*time.Millisecond || waited > 1600*time.Millisecond {
			t.Errorf("the third request went after %v, want 1.5s", waited)
		}
	})
}

// Without an answer nothing is sent to the gateway, least of all an unstated request.
func TestSTUNFails(t *testing.T) {
	silent := func(*fakeConn, []byte, netip.AddrPort) {}
	tells := func(addr string) func(*fakeConn, []byte, netip.AddrPort) {
		return func(c *fakeConn, request []byte, to netip.AddrPort) {
			c.in <- delivery{data: stun.Response(stun.TxID(request[8:20]), netip.AddrPortFrom(netip.MustParseAddr(addr), 1)),
				from: to}
		}
	}
	for name, c := range map[string]struct {
		source string
		udp    func(*fakeConn, []byte, netip.AddrPort)
		says   string
	}{
		"silence":                     {"stun:stun.example.net", silent, "no answer"},
		"an address of the other":     {"stun:stun.example.net", tells("2001:db8::9"), "cannot be this machine's"},
		"multicast":                   {"stun:stun.example.net", tells("224.0.0.1"), "cannot be this machine's"},
		"a name that nobody has":      {"stun:nowhere.example.net", silent, "looking up"},
		"a server of another family":  {"stun:2001:db8::33", silent, "no address of the gateway's family"},
		"a resolver that never comes": {"stun:slow.example.net", silent, "looking up"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := natted(t, c.udp)
				g.profile.Address = gate4.String()
				start := time.Now()
				_, err := prepare(t.Context(), g.profile, stunCommand(t, c.source), n)
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want it to say %q", err, c.says)
				}
				if waited := time.Since(start); waited > stunTime {
					t.Errorf("it took %v", waited)
				}
				if knocks, _, _ := g.seen(); len(knocks) != 0 {
					t.Error("the gateway was knocked on")
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		g, n := natted(t, silent)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := prepare(ctx, g.profile, stunCommand(t, "stun:stun.example.net"), n); err == nil ||
			time.Since(start) > time.Second {
			t.Errorf("cancelled: got %v after %v", err, time.Since(start))
		}
	})
}

// If the server knows only one family, the client does not knock in the other.
func TestSTUNOfOneFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := natted(t, honest)
		n.hosts["stun.example.net"] = []netip.Addr{stun4}
		plan := mustPrepare(t, g, n, stunCommand(t, "stun:stun.example.net"))
		if len(plan.Routes) != 1 || plan.Routes[0].Source != seen4 {
			t.Errorf("got %+v, want IPv4 only", plan.Routes)
		}
	})
}

// No server is asked that was not named.
func TestNobodyIsAsked(t *testing.T) {
	for _, source := range []string{"", "auto", "observed", "198.51.100.7"} {
		synctest.Test(t, func(t *testing.T) {
			g, n := natted(t, func(*fakeConn, []byte, netip.AddrPort) { t.Errorf("source %q: a STUN server is asked", source) })
			for range mustPrepare(t, g, n, stunCommand(t, source)).Knock(t.Context()) {
			}
		})
	}
}

func TestTranslated(t *testing.T) {
	for name, c := range map[string]struct {
		own, in string
		want    bool
	}{
		"the own address":              {"8.8.4.4", "8.8.4.4", false},
		"behind a NAT":                 {"10.0.0.2", "8.8.4.4", false},
		"behind a carrier's NAT":       {"100.64.0.2", "8.8.4.4", false},
		"a routable one, and another":  {"8.8.4.4", "8.8.8.8", true},
		"NAT64":                        {"2a00::4", "8.8.4.4", true},
		"NAT64 from a private address": {"fd00::4", "8.8.4.4", true},
		"it is not told":               {"8.8.4.4", "", false},
		"it is not known":              {"", "8.8.4.4", false},
	} {
		a := Answer{Receipt: &spa.Receipt{}}
		a.Route.Own, _ = netip.ParseAddr(c.own)
		a.Receipt.Source, _ = netip.ParseAddr(c.in)
		in, got := a.Translated()
		if got != c.want || got && in != a.Receipt.Source {
			t.Errorf("%s: got %v, %v", name, in, got)
		}
	}
	if _, got := (Answer{}).Translated(); got {
		t.Error("without a receipt: translated")
	}
}
