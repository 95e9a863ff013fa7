package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// redirect leads tcp/2222 of the gateway to its tcp/22, as another tool does.
func (s *site) redirect() {
	s.Helper()
	s.another(func(c *nft.Conn) {
		// meta l4proto tcp th dport 2222 redirect to :22
		chainOf(c, nft.ChainTypeNAT, nft.ChainHookPrerouting, -100, nftables.Rule(
			nftables.L4Proto(service.TCP), nftables.Raw(
				nftables.Port(nftables.Register, nftables.Dport), nftables.Equal([]byte{2222 >> 8, 2222 & 0xff}),
				&expr.Immediate{Register: 1, Data: []byte{0, 22}}, &expr.Redir{RegisterProtoMin: 1},
			)).Exprs...)
	})
}

// TestPortThatLeadsToAGuardedOne: after the rewriting, a packet needs a grant for the guarded port or, if the port
// that leads there is guarded too, one for that. check reports such a port.
func TestPortThatLeadsToAGuardedOne(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, own := range []string{"", "tcp/2222"} {
			t.Run(f.name+" "+own, func(t *testing.T) {
				s := k.newSite(t, func(c *Config) {
					c.Trusted = []string{"elsewhere"}
					if own != "" {
						guarding(own)(c)
					}
				})
				s.redirect()
				s.connect(f.stranger, f.gateway, "2222")
				s.open()
				s.load(0)
				s.dark(f.stranger, f.gateway, "2222")
				g := sshGrant("alice", f.alice, long)
				if own != "" {
					g.Ports[0] = ports(own)
				}
				s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
				s.connect(f.alice, f.gateway, "2222")
				s.dark(f.stranger, f.gateway, "2222")
				if own != "" {
					s.dark(f.alice, f.gateway, "22")
				}
			})
		}
	})
}

// TestOtherPortThatIsLed: ports that are not guarded are led to others as before.
func TestOtherPortThatIsLed(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.serve(":8000")
		s.nft("table inet leads { chain c { type nat hook prerouting priority -100; tcp dport 8080 redirect to :8000; }; }")
		s.connect(f.stranger, f.gateway, "8080")
	})
}

// TestGuardedPortThatIsLedAway: whichever tool leads a guarded port to another one or to a machine behind, at
// whatever priority, only clients with a grant get there.
func TestGuardedPortThatIsLedAway(t *testing.T) {
	for _, closed := range []Closed{Drop, Reject} {
		for _, priority := range []nft.ChainPriority{-199, -150, -102, -101, -100, -50} {
			for _, far := range []bool{false, true} {
				name := fmt.Sprint(priority, map[Closed]string{Drop: " drop", Reject: " reject"}[closed],
					map[bool]string{true: " to a machine"}[far])
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					s := newSite(t, func(c *Config) {
						guarding("udp/22")(c)
						c.Closed, c.Trusted = closed, []string{"elsewhere"}
					})
					s.ledAway(priority, far)
				})
			}
		}
	}
}

// ledAway makes another tool lead port 22 away, and checks which clients get there.
func (s *site) ledAway(priority nft.ChainPriority, far bool) {
	s.Helper()
	host, port22 := s.gw, nftables.Raw(nftables.Port(nftables.Register, nftables.Dport), nftables.Equal([]byte{0, 22}))
	if far {
		host = s.inner()
	} else {
		s.serve(":2200")
	}
	server := s.udp(host, map[bool]string{false: "[::]:2200", true: "[::]:22"}[far])
	for _, f := range bothFamilies {
		s.another(func(c *nft.Conn) {
			if !far {
				// th dport 22 redirect to :2200
				chainOf(c, nft.ChainTypeNAT, nft.ChainHookPrerouting, priority, nftables.Rule(port22, nftables.Raw(
					&expr.Immediate{Register: 1, Data: []byte{2200 >> 8, 2200 & 0xff}}, &expr.Redir{RegisterProtoMin: 1},
				)).Exprs...)
				return
			}
			// th dport 22 dnat ip to INNER (or ip6)
			to := netip.MustParseAddr(innerAddr[f.name])
			family := map[bool]uint32{true: unix.NFPROTO_IPV4, false: unix.NFPROTO_IPV6}[to.Is4()]
			chainOf(c, nft.ChainTypeNAT, nft.ChainHookPrerouting, priority,
				nftables.Rule(nftables.Meta(expr.MetaKeyNFPROTO, []byte{byte(family)}), port22, nftables.Raw(
					&expr.Immediate{Register: 1, Data: to.AsSlice()},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1},
				)).Exprs...)
		})
	}
	s.open()
	s.load(0)
	shut := func(from, to string) {
		s.Helper()
		if c, err := s.attempt(from, to, "22", silence); err == nil {
			c.Close()
			s.Errorf("%s connected to %s", from, to)
		}
		_, err := s.udp(s.client, net.JoinHostPort(from, "0")).WriteTo([]byte("hello"),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 22)))
		s.must(err)
		if s.gets(server, silence) {
			s.Errorf("a datagram from %s to %s was delivered", from, to)
		}
		if s.config.Closed == Reject && priority > -101 { // those priorities come after the guard's own
			s.refusal(s.client, net.JoinHostPort(from, "0"), net.JoinHostPort(to, "22"))
		}
	}
	for _, f := range bothFamilies {
		shut(f.stranger, f.gateway)
		s.must(s.Grant(s.Context(), []Grant{sshGrant("alice", f.alice, long)}, time.Now()))
		s.connect(f.alice, f.gateway, "22")
		shut(f.stranger, f.gateway)
	}
}

// TestPublishedTarget: a port that leads to a target is as shut as the target, and open to clients with a grant for
// the target; with cut, no longer than the grant lasts, even if the guard itself leads another port there.
func TestPublishedTarget(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, end := range []string{"", "cut", "cut beside a forward"} {
			t.Run(f.name+" "+end, func(t *testing.T) {
				cut := end != ""
				s := k.newSite(t, func(c *Config) {
					c.Trusted = []string{"elsewhere"}
					c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])},
						Ports: []service.Ports{ports("tcp/22")}}}
					if cut {
						c.Cut = []service.Ports{ports("tcp/22")}
					}
					if end == "cut beside a forward" {
						guarding("tcp/2300")(c)
						c.Forwards = []Forward{{Ports: rangesOf("tcp/2300"),
							To: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(innerAddr[f.name]), 22)}}}
					}
				})
				accept := s.listenOn(s.behind(), ":22")
				s.publish(f)
				s.talk(accept, f.stranger, f.gateway, "2222")
				s.open()
				s.load(0)
				s.dark(f.stranger, f.gateway, "2222")
				s.must(s.Grant(t.Context(), []Grant{s.toInner("alice", f.alice, f)}, time.Now()))
				v := s.talk(accept, f.alice, f.gateway, "2222")
				s.mutual(v, true)
				s.dark(f.stranger, f.gateway, "2222")
				s.revoke(Match{})
				s.dark(f.alice, f.gateway, "2222")
				s.mutual(v, !cut)
			})
		}
	})
}

// TestPublishedTargetUDP: a server of datagrams at a target, to which another tool leads a port, is not heard after the
// grant where sessions end with it.
func TestPublishedTargetUDP(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		inner := netip.MustParseAddr(innerAddr[f.name])
		s := guarded(t, func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{inner}, Ports: rangesOf("udp/5000")}}
			c.Cut = rangesOf("udp/5000")
		})
		server, alice := s.udp(s.behind(), "[::]:5000"), s.udp(s.client, net.JoinHostPort(f.alice, "4000"))
		s.nft(fmt.Sprintf("table inet leads { chain c { type nat hook prerouting priority -100; udp dport 5001 "+
			"dnat %s to %s; }; }", nftFamily[f.name], netip.AddrPortFrom(inner, 5000)))
		g := s.toInner("alice", f.alice, f)
		g.Ports = rangesOf("udp/5000")
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		to := net.JoinHostPort(f.gateway, "5001")
		s.send(alice, to)
		if !s.gets(server, lab.Patience) {
			t.Fatal("the question was lost")
		}
		s.utters(server, alice)
		s.revoke(Match{})
		s.send(server, alice.LocalAddr().String())
		if s.gets(alice, silence) {
			t.Error("the client still hears its server")
		}
		s.send(alice, to)
		if s.gets(server, silence) {
			t.Error("the server still hears its client")
		}
	})
}

var nftFamily = map[string]string{"IPv4": "ip", "IPv6": "ip6"}
