package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/iptables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestCutOverAFlush: a session by a port that another tool leads to a machine or to this host ends with its grant, and
// no other does, whenever the grant ends and another tool flushes both.
func TestCutOverAFlush(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, to := range []string{innerAddr[f.name], f.gateway} {
			for _, ends := range []string{"before the flush", "while the guard is away", "after the flush"} {
				t.Run("to "+to+" "+ends, func(t *testing.T) { k.cutOverAFlush(t, f, netip.MustParseAddr(to), ends) })
			}
		}
	})
}

func (k kind) cutOverAFlush(t *testing.T, f sides, to netip.Addr, ends string) {
	inner, both := to.String() == innerAddr[f.name], []service.Ports{ports("tcp/2200"), ports("udp/2200")}
	s := k.newSite(t, func(c *Config) {
		c.Guarded, c.Cut = both, both
		if inner {
			c.Targets = []Target{{Addresses: []netip.Addr{to}, Ports: both}}
		}
	})
	at := s.gw
	if inner {
		at = s.behind()
	}
	accept, server := s.listenOn(at, ":2200"), s.udp(at, "[::]:2200")
	publish := func() {
		s.runNFT(fmt.Sprintf("table inet lead { chain c { type nat hook prerouting priority -100; "+
			"meta l4proto { tcp, udp } th dport 2222 dnat %s to %s; }; }",
			nftFamily[f.name], netip.AddrPortFrom(to, 2200)), "-f", "-")
	}
	publish()
	s.open()
	s.load(0)
	var gs []Grant
	for client, from := range map[string]string{"alice": f.alice, "bob": f.stranger} {
		g := sshGrant(client, from, long)
		g.Ports = both
		if inner {
			g.To = []netip.Addr{to}
		}
		gs = append(gs, g)
	}
	s.must(s.Grant(s.Context(), gs, time.Now()))
	mine, theirs := s.talk(accept, f.alice, f.gateway, "2222"), s.talk(accept, f.stranger, f.gateway, "2222")
	asks := func(from string) *net.UDPConn {
		c := s.udp(s.client, net.JoinHostPort(from, "4000"))
		s.datagrams(server, c, f, true)
		return c
	}
	my, their := asks(f.alice), asks(f.stranger)
	end := func(at string) {
		if at == ends {
			s.revoke(Match{Client: "alice"})
		}
	}
	end("before the flush")
	s.flushRuleset()
	if b, ok := s.backend.(*iptables.Backend); ok { // its sets stay
		s.must(b.Sets.Replace(b.AddressSet(iptables.SetMet, ipset.HashIPPort, f.name == "IPv6"), nil))
	}
	publish()
	end("while the guard is away")
	s.load(0)
	end("after the flush")
	for range 3 {
		s.mutual(mine, false)
		s.datagrams(server, my, f, false)
	}
	s.mutual(theirs, true)
	s.datagrams(server, their, f, true)
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen(f.alice, f.gateway, "2222") })
	if !slices.ContainsFunc(s.Grants(time.Now()), func(g Grant) bool { return g.Client == "bob" }) {
		t.Error("the other grant is gone")
	}
	s.forgetFlows()
	server.WriteTo([]byte("news"), my.LocalAddr()) // this may fail, because the guard forbids it
	if s.gets(my, silence) {
		t.Error("the server begins a flow with its client of before")
	}
}

// datagrams checks whether a client at the port that leads on, and its server, hear each other.
func (s *site) datagrams(server, client *net.UDPConn, f sides, heard bool) {
	s.Helper()
	within := silence
	if heard {
		within = lab.Patience
	}
	s.send(client, net.JoinHostPort(f.gateway, "2222"))
	if s.gets(server, within) != heard {
		s.Errorf("the server hears its client: %v, want %v", !heard, heard)
	}
	server.WriteTo([]byte("news"), client.LocalAddr()) // this may fail, because the guard forbids it
	if s.gets(client, within) != heard {
		s.Errorf("the client hears its server: %v, want %v", !heard, heard)
	}
}

// TestCutAtATargetAlone: where sessions with a machine end with their grants, the gateway's own port of the same number
// is nobody's business until another tool leads it to the machine; then it is as open as the machine.
func TestCutAtATargetAlone(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		to := netip.MustParseAddr(innerAddr[f.name])
		s := k.newSite(t, func(c *Config) {
			c.Cut = rangesOf("tcp/2200")
			c.Targets = []Target{{Addresses: []netip.Addr{to}, Ports: c.Cut}}
		})
		accept := s.listenOn(s.behind(), ":2200")
		s.serve(":2200")
		s.open()
		s.load(0)
		s.connect(f.stranger, f.gateway, "2200")
		s.nft(fmt.Sprintf("table inet leads { chain c { type nat hook prerouting priority -100; %[1]s daddr %[2]s "+
			"tcp dport 2200 dnat %[1]s to %[3]s; }; }", nftFamily[f.name], f.gateway, netip.AddrPortFrom(to, 2200)))
		g := s.toInner("alice", f.alice, f)
		g.Ports = rangesOf("tcp/2200")
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		v := s.talk(accept, f.alice, f.gateway, "2200")
		s.mutual(v, true)
		s.dark(f.stranger, f.gateway, "2200")
		s.revoke(Match{})
		s.mutual(v, false)
		s.dark(f.alice, f.gateway, "2200")
	})
}

// TestLedOverAFirstLoad: a session from before the first load that another tool leads to a machine continues, even if
// it hides its client's address from the machine; a cut ends it like any other.
func TestLedOverAFirstLoad(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		to := netip.MustParseAddr(innerAddr[f.name])
		s := k.newSite(t, func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{to}, Ports: rangesOf("tcp/2200")}}
		})
		l := s.listens(s.behind(), ":2200")
		s.nft(fmt.Sprintf("table inet leads { chain in { type nat hook prerouting priority -100; %[1]s daddr %[2]s "+
			"tcp dport { 2222, 2223 } dnat %[1]s to %[3]s; }; chain out { type nat hook postrouting priority 100; "+
			"meta l4proto tcp ct original proto-dst 2223 masquerade; }; }", nftFamily[f.name], f.gateway,
			netip.AddrPortFrom(to, 2200)))
		w := &forwarded{site: s}
		begin := func(from, port string) session {
			c := lab.Value(s.dial(from, f.gateway, port))(t)
			t.Cleanup(func() { c.Close() })
			return session{c, w.hearing(l, c)}
		}
		first, second := begin(f.stranger, "2222"), begin(f.stranger, "2223")
		s.open()
		s.load(0)
		s.mutual(first, true)
		s.speaks(second.server, second.client) // before the client has sent anything
		s.mutual(second, true)
		s.dark(f.stranger, f.gateway, "2222")
		g := s.toInner("alice", f.alice, f)
		g.Ports = rangesOf("tcp/2200")
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		mine, hidden := begin(f.alice, "2222"), begin(f.alice, "2223")
		s.mutual(hidden, true)
		s.cuts(Match{}, 2)
		s.mutual(mine, false)
		s.mutual(hidden, false)
		s.mutual(first, true)
		s.mutual(second, true)
	})
}
