package firewall

import (
	"io"
	"net"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sallyport/spa/lab"
)

func TestSessionMadeInAGapDies(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.guarded(t, nil)
				s.grant("alice", f.alice, 200*time.Millisecond)
				granted := s.connect(f.alice, f.gateway, "22")
				lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "22") })
				s.flushRuleset()
				gap := s.connect(f.stranger, f.gateway, "22")
				s.load(0)
				s.dead(gap)
				s.echoes(granted)
			})
		}
	})
}

// TestTrackedSessionMadeInAGapDies is the case in which another tool keeps connection
// tracking alive: the gap's session is established when the guard comes back.
func TestTrackedSessionMadeInAGapDies(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.guarded(t, nil)
				s.flushRuleset()
				s.another(func(c *nft.Conn) {
					chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, isReply()...)
				})
				gap := s.connect(f.stranger, f.gateway, "22")
				s.load(0)
				s.dead(gap)
			})
		}
	})
}

// push is a server that talks without being asked.
func (s *site) push(addr string) {
	s.Helper()
	var l net.Listener
	s.must(s.gw.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	s.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for range tick.C {
					if _, err := io.WriteString(c, "news"); err != nil {
						return
					}
				}
			}()
		}
	}()
}

func hears(c net.Conn, within time.Duration) bool {
	c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c, make([]byte, 4))
	return err == nil
}

// fallsSilent reports that what is still under way ends soon.
func fallsSilent(c net.Conn) func() bool {
	return func() bool { return !hears(c, silence) }
}

func TestPushingServerDoesNotReviveAGapSession(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.guarded(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/2300")) })
				s.push(":2300")
				s.flushRuleset()
				c, err := s.dial(f.stranger, f.gateway, "2300", soon)
				s.must(err)
				defer c.Close()
				if !hears(c, soon) {
					t.Fatal("the server does not talk")
				}
				s.load(0)
				lab.Eventually(t, "silence", fallsSilent(c))
			})
		}
	})
}

func TestPushingServerIsHeardThroughAGrant(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.guarded(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/2300")) })
				s.push(":2300")
				g := sshGrant("alice", f.alice, time.Minute)
				g.Ports[0] = ports("tcp/2300")
				s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
				s.flushRuleset()
				c, err := s.dial(f.alice, f.gateway, "2300", soon)
				s.must(err)
				defer c.Close()
				s.load(0)
				for range 20 {
					if !hears(c, soon) {
						t.Fatal("a granted client no longer hears its server")
					}
				}
			})
		}
	})
}

func TestAnotherToolsMarkOpensNothing(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.guarded(t, nil)
				s.another(func(c *nft.Conn) {
					// ct mark set 0xffffffff
					chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -150,
						&expr.Immediate{Register: 1, Data: native(0xffffffff)},
						&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
				})
				s.dark(f.stranger, f.gateway, "22")
			})
		}
	})
}

// TestOwnMarkBit: the bit is the configured one.
func TestOwnMarkBit(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Mark = 0x100 })
	s.grant("alice", "192.0.2.2", 300*time.Millisecond)
	session := s.connect("192.0.2.2", "192.0.2.1", "22")
	lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "22") })
	s.echoes(session)
	s.config.Mark = 0x200 // sessions are known by the bit alone
	s.open()
	s.load(0)
	s.dead(session)
}
