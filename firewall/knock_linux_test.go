package firewall

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// refuses reports whether a datagram gets an ICMP error.
func (s *site) refuses(h *lab.Host, from, to string, within time.Duration) bool {
	s.Helper()
	var c net.Conn
	s.must(h.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
		c, err = d.Dial("udp", to)
		return err
	}))
	defer c.Close()
	_, err := c.Write([]byte("is anybody there?"))
	s.must(err)
	s.must(c.SetReadDeadline(time.Now().Add(within)))
	_, err = c.Read(make([]byte, 10))
	return errors.Is(err, syscall.ECONNREFUSED)
}

// refusal waits until a datagram gets an ICMP error: the kernel sends only so many a second.
func (s *site) refusal(h *lab.Host, from, to string) {
	s.Helper()
	lab.Eventually(s, "a refusal by "+to, func() bool { return s.refuses(h, from, to, silence) })
}

func TestSharedKnockPortPasses(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Knock = []KnockPort{{Port: 443, Shared: true}} })
	for _, a := range [][2]string{{"192.0.2.2:0", "192.0.2.1:443"}, {"[2001:db8::2]:0", "[2001:db8::1]:443"}} {
		server := s.udp(s.gw, a[1])
		s.send(s.udp(s.client, a[0]), a[1])
		if !s.gets(server, lab.Patience) {
			t.Errorf("nothing arrives at %s", a[1])
		}
	}
}

// TestReceiptIsNoInvitation: a receipt from a shared port that is guarded itself does not admit its receiver to that
// port.
func TestReceiptIsNoInvitation(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, a := range []struct{ name, client, gw string }{
			{"IPv4", "192.0.2.3:4000", "192.0.2.1:443"},
			{"IPv6", "[2001:db8::3]:4000", "[2001:db8::1]:443"},
		} {
			t.Run(a.name, func(t *testing.T) {
				s := k.guarded(t, func(c *Config) {
					c.Guarded = append(c.Guarded, ports("udp/443"))
					c.Knock = []KnockPort{{Port: 443, Shared: true}}
				})
				server, stranger := s.udp(s.gw, a.gw), s.udp(s.client, a.client)
				raw, err := server.SyscallConn()
				s.must(err)
				s.must(raw.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, DefaultMark)
				}))
				s.must(err)
				s.send(server, a.client)
				if !s.gets(stranger, lab.Patience) {
					t.Fatal("the receipt did not arrive")
				}
				s.send(stranger, a.gw)
				if s.gets(server, silence) {
					t.Error("the receiver of a receipt reaches the guarded port")
				}
			})
		}
	})
}

// TestReceiptsLeaveUntracked: from a port of our own, even without a mark.
func TestReceiptsLeaveUntracked(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.another(func(c *nft.Conn) {
			// udp sport 62201 ct state new,established,related drop
			const tracked = expr.CtStateBitNEW | expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookOutput, 0,
				nftables.Rule(nftables.UDPPort(nftables.Sport, 62201), nftables.CTState(tracked), nftables.Drop()).Exprs...)
		})
		client := s.udp(s.client, "192.0.2.2:4000")
		s.send(s.udp(s.gw, "192.0.2.1:62201"), "192.0.2.2:4000")
		if !s.gets(client, lab.Patience) {
			t.Error("the receipt was tracked")
		}
	})
}

// TestServerOfASharedPort: only receipts are untracked; otherwise the server's sessions would end with their grants.
func TestServerOfASharedPort(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, func(c *Config) {
			c.Guarded = append(c.Guarded, ports("udp/443"))
			c.Knock = []KnockPort{{Port: 443, Shared: true}}
		})
		server, alice := s.udp(s.gw, "192.0.2.1:443"), s.udp(s.client, "192.0.2.2:4000")
		s.grantPorts("one", "192.0.2.2", long, "udp/443")
		s.send(alice, "192.0.2.1:443")
		if !s.gets(server, lab.Patience) {
			t.Fatal("a granted datagram was lost")
		}
		s.send(server, "192.0.2.2:4000")
		if !s.gets(alice, lab.Patience) {
			t.Fatal("the answer was lost")
		}
		s.shorten(Match{}, 500*time.Millisecond)
		other := s.udp(s.client, "192.0.2.2:4001")
		lab.Eventually(t, "the grant's end", func() bool {
			s.send(other, "192.0.2.1:443")
			return !s.gets(server, silence)
		})
		s.send(alice, "192.0.2.1:443")
		if !s.gets(server, lab.Patience) {
			t.Error("the session ended with its grant")
		}
	})
}

func TestReject(t *testing.T) {
	s := guarded(t, func(c *Config) {
		c.Closed = Reject
		c.Guarded = append(c.Guarded, ports("udp/5000"))
	})
	s.udp(s.gw, "[::]:5000")
	for _, f := range bothFamilies {
		s.refusal(s.client, net.JoinHostPort(f.stranger, "0"), net.JoinHostPort(f.gateway, "5000"))
	}
	s.anotherOn(s.client, func(c *nft.Conn) { // every later refusal is TCP's
		chainOf(c, nft.ChainTypeFilter, nft.ChainHookInput, 0,
			nftables.Rule(nftables.Meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMP}), nftables.Drop()).Exprs...)
	})
	s.anotherOn(s.client, func(c *nft.Conn) {
		const destinationUnreachable = 1
		icmp := &expr.Payload{DestRegister: nftables.Register, Base: expr.PayloadBaseTransportHeader, Len: 1}
		chainOf(c, nft.ChainTypeFilter, nft.ChainHookInput, 0,
			nftables.Rule(nftables.Meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMPV6}),
				nftables.Raw(icmp, nftables.Equal([]byte{destinationUnreachable})),
				nftables.Drop()).Exprs...)
	})
	for _, f := range bothFamilies {
		if _, err := s.dial(f.stranger, f.gateway, "22"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v over %s, want a refused connection", err, f.name)
		}
		s.grant("alice", f.alice, long)
		s.connect(f.alice, f.gateway, "22")
	}
}

// TestKnocksComeUntracked: knocks to every address of the host leave no entry in connection tracking; other ports, TCP
// and other machines' datagrams do.
func TestKnocksComeUntracked(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, nil)
		inner := s.behind() // a router has an anycast address
		s.another(func(c *nft.Conn) {
			// udp dport 62201 ct state new drop
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookInput, 0,
				nftables.Rule(nftables.UDPPort(nftables.Dport, 62201), nftables.CTState(expr.CtStateBitNEW),
					nftables.Drop()).Exprs...)
		})
		s.open()
		s.load(0)
		server := s.udp(s.gw, "[::]:62201")
		for from, to := range map[string]string{"192.0.2.2:0": "192.0.2.1", "[2001:db8::2]:0": "2001:db8::1",
			"[2001:db8::3]:0": "2001:db8::"} {
			s.send(s.udp(s.client, from), net.JoinHostPort(to, "62201"))
			if !s.gets(server, lab.Patience) {
				t.Errorf("a knock to %s was tracked", to)
			}
		}
		s.runNFT(`table inet tracks {
chain in { type filter hook input priority 0; tcp dport 62201 ct state untracked drop
udp dport 62202 ct state untracked drop; }
chain on { type filter hook forward priority 0; udp dport 62201 ct state untracked drop; }
}`, "-f", "-")
		s.serve(":62201")
		for _, f := range bothFamilies {
			s.connect(f.alice, f.gateway, "62201")
			for to, server := range map[string]*net.UDPConn{
				net.JoinHostPort(f.gateway, "62202"):         s.udp(s.gw, net.JoinHostPort(f.gateway, "62202")),
				net.JoinHostPort(innerAddr[f.name], "62201"): s.udp(inner, net.JoinHostPort(innerAddr[f.name], "62201")),
			} {
				s.send(s.udp(s.client, net.JoinHostPort(f.alice, "0")), to)
				if !s.gets(server, lab.Patience) {
					t.Errorf("a datagram to %s was not tracked", to)
				}
			}
		}
	})
}

// TestGrantAfterARefusal: a client that was rejected gets in from the same port once it has a grant.
func TestGrantAfterARefusal(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, func(c *Config) {
			guarding("udp/5000")(c)
			c.Closed = Reject
		})
		from := net.JoinHostPort(f.alice, "4000")
		server, client := s.udp(s.gw, net.JoinHostPort(f.gateway, "5000")), s.udp(s.client, from)
		s.send(client, server.LocalAddr().String())
		if s.gets(server, silence) {
			t.Error("a datagram without a grant was delivered")
		}
		if _, err := s.attempt(from, f.gateway, "22", lab.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v, want a refused connection", err)
		}
		s.grantPorts("both", f.alice, long, "tcp/22", "udp/5000")
		s.exchange(client, server)
		s.connect(from, f.gateway, "22")
	})
}

// TestTargetRejects: where strangers are rejected, the guard does so in the name of a machine behind it too.
func TestTargetRejects(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, func(c *Config) {
			c.Closed = Reject
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])},
				Ports: rangesOf("tcp/22 udp/5000")}}
		})
		s.udp(s.inner(), "[::]:5000")
		if _, err := s.dial(f.stranger, innerAddr[f.name], "22"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v, want a refused connection", err)
		}
		s.refusal(s.client, net.JoinHostPort(f.stranger, "0"), net.JoinHostPort(innerAddr[f.name], "5000"))
	})
}
