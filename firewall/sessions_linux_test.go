package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

func TestSessionMadeInAGapDies(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.grant("alice", f.alice, long)
		granted := s.connect(f.alice, f.gateway, "22")
		s.shorten(Match{}, 200*time.Millisecond)
		lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "22") })
		s.flushRuleset()
		gap := s.connect(f.stranger, f.gateway, "22")
		s.load(0)
		s.dead(gap)
		s.echoes(granted)
	})
}

// TestTrackedSessionMadeInAGapDies is the case in which another tool keeps connection tracking enabled: the gap's
// session is established when the guard comes back.
func TestTrackedSessionMadeInAGapDies(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.flushRuleset()
		s.another(func(c *nft.Conn) {
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
		})
		gap := s.connect(f.stranger, f.gateway, "22")
		s.load(0)
		s.dead(gap)
	})
}

// TestServerOfAGapSessionIsSilent: nothing leaves in such a session, whatever strangers get as an answer and although
// sessions of that port end with their grants; unless strangers are rejected, not even its end.
func TestServerOfAGapSessionIsSilent(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		for i, guards := range []func(...string) func(*Config){cutting, guarding, cutting, guarding} {
			closed := Closed(i / 2)
			s := guarded(t, both(guards("tcp/2300"), func(c *Config) { c.Closed = closed }))
			s.flushRuleset()
			s.another(func(c *nft.Conn) {
				chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
			})
			gap := s.talk(s.listen(":2300"), f.stranger, f.gateway, "2300")
			s.load(0)
			s.mutual(gap, false)
			s.must(gap.server.(*net.TCPConn).SetLinger(0))
			s.must(gap.server.Close())
			s.must(gap.client.SetReadDeadline(time.Now().Add(silence)))
			_, err := gap.client.Read(make([]byte, 100))
			if told := errors.Is(err, syscall.ECONNRESET); told && closed == Drop {
				t.Error("the stranger's session is reset")
			}
		}
	})
}

// TestDatagramsThatAServerBeganInAGap: a session of datagrams that the server began while the guard was away ends too.
func TestDatagramsThatAServerBeganInAGap(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("udp/5000"))
		server := s.udp(s.gw, net.JoinHostPort(f.gateway, "5000"))
		stranger := s.udp(s.client, net.JoinHostPort(f.stranger, "4000"))
		s.flushRuleset()
		s.another(func(c *nft.Conn) {
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
		})
		s.exchange(server, stranger)
		s.load(0)
		for range 2 {
			server.WriteTo([]byte("hello"), stranger.LocalAddr()) // dropped, which is an error
			if s.gets(stranger, silence) {
				t.Error("the server reaches a stranger in a session of the gap")
			}
			s.send(stranger, server.LocalAddr().String())
			if s.gets(server, silence) {
				t.Error("a stranger reaches the server in a session of the gap")
			}
		}
	})
}

// push is a server that sends without being asked.
func (s *site) push(addr string) {
	s.Helper()
	var l net.Listener
	s.must(s.gw.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	lab.Serve(s, l, lab.Push)
}

func hears(c net.Conn, within time.Duration) bool {
	return reads(c, make([]byte, len("news")), len("news"), within) == len("news")
}

// keepsHearing fails unless the server goes on sending, for longer than what it sent before can last.
func keepsHearing(t *testing.T, c net.Conn) {
	t.Helper()
	for range 50 {
		if !hears(c, lab.Patience) {
			t.Fatal("the client no longer hears its server")
		}
	}
}

// fallsSilent reports whether the connection becomes silent once data in flight has arrived.
func fallsSilent(c net.Conn) func() bool {
	return func() bool { return !hears(c, silence) }
}

func TestPushingServerDoesNotReviveAGapSession(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/2300")) })
		s.push(":2300")
		s.flushRuleset()
		c := lab.Value(s.dial(f.stranger, f.gateway, "2300"))(s)
		defer c.Close()
		if !hears(c, lab.Patience) {
			t.Fatal("the server does not send")
		}
		s.load(0)
		lab.Eventually(t, "silence", fallsSilent(c))
	})
}

// TestManyPushingServersReviveNoGapSession: whatever servers send while the guard is being loaded revives no session.
// It takes many of them to send at each moment of a load.
func TestManyPushingServersReviveNoGapSession(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/2300")) })
		s.push(":2300")
		for range 5 {
			s.flushRuleset()
			clients := s.listeners()
			s.load(0)
			lab.Eventually(t, "silence", func() bool { return silent(clients) })
		}
	})
}

// TestStartRevivesNoGapSession: probing the kernel begins no flow.
func TestStartRevivesNoGapSession(t *testing.T) {
	s := guarded(t, guarding("tcp/2300"))
	s.push(":2300")
	s.flushRuleset()
	clients := s.listeners()
	for range 20 {
		s.open()
	}
	s.load(0)
	lab.Eventually(t, "silence", func() bool { return silent(clients) })
}

// listeners are strangers' sessions with the server that sends on port 2300.
func (s *site) listeners() (clients []net.Conn) {
	s.Helper()
	for range 20 {
		c := lab.Value(s.dial("192.0.2.3", "192.0.2.1", "2300"))(s)
		s.Cleanup(func() { c.Close() })
		if !hears(c, lab.Patience) {
			s.Fatal("the server does not send")
		}
		clients = append(clients, c)
	}
	return clients
}

// silent reports whether nothing arrives over any of the connections for a while.
func silent(cs []net.Conn) bool {
	var loud atomic.Bool
	var all sync.WaitGroup
	for _, c := range cs {
		all.Go(func() {
			if reads(c, make([]byte, 1<<16), 1, silence) > 0 {
				loud.Store(true)
			}
		})
	}
	all.Wait()
	return !loud.Load()
}

// TestPushingServerIsHeardThroughAGrant: a client with a grant hears its server, even by a grant for an address of
// the host's.
func TestPushingServerIsHeardThroughAGrant(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, target := range []bool{false, true} {
			t.Run(fmt.Sprint(f.name, map[bool]string{true: " target"}[target]), func(t *testing.T) {
				own := []netip.Addr{netip.MustParseAddr(f.gateway)}
				s := k.guarded(t, func(c *Config) {
					guarding("tcp/2300")(c)
					if target {
						c.Targets = []Target{{Addresses: own, Ports: rangesOf("tcp/2300")}}
					}
				})
				s.push(":2300")
				g := sshGrant("alice", f.alice, long)
				g.Ports[0] = ports("tcp/2300")
				if target {
					g.To = own
				}
				s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
				s.flushRuleset()
				c := lab.Value(s.dial(f.alice, f.gateway, "2300"))(s)
				defer c.Close()
				s.load(0)
				keepsHearing(t, c)
			})
		}
	})
}

// TestAnotherToolsMarkOpensNothing: nor by a port that leads to a guarded one.
func TestAnotherToolsMarkOpensNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("udp/5000"))
		s.another(func(c *nft.Conn) {
			// ct mark set 0xffffffff
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -150,
				&expr.Immediate{Register: 1, Data: nftables.Native(0xffffffff)},
				&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
		})
		s.nft("table inet leads { chain c { type nat hook prerouting priority -100; tcp dport 2222 redirect to :22\n" +
			"udp dport 5001 redirect to :5000; }; }")
		s.dark(f.stranger, f.gateway, "22")
		s.dark(f.stranger, f.gateway, "2222")
		server, stranger := s.udp(s.gw, "[::]:5000"), s.udp(s.client, net.JoinHostPort(f.stranger, "0"))
		for _, port := range []string{"5000", "5001"} {
			s.send(stranger, net.JoinHostPort(f.gateway, port))
		}
		if s.gets(server, silence) {
			t.Error("a stranger's datagram was delivered")
		}
	})
}

// TestOwnMarkBit: the bit is the configured one.
func TestOwnMarkBit(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Mark = 0x100 })
	s.grant("alice", "192.0.2.2", long)
	session := s.connect("192.0.2.2", "192.0.2.1", "22")
	s.shorten(Match{}, 300*time.Millisecond)
	lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "22") })
	s.echoes(session)
	s.config.Mark = 0x200 // only the bit identifies sessions
	s.open()
	s.load(0)
	s.dead(session)
}
