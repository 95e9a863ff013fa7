package firewall

import (
	"net"
	"net/netip"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// endCarry takes away what the first load carries, as ten minutes do.
func (s *site) endCarry() {
	s.Helper()
	if s.kind.programs == "" {
		o := newObjects(0)
		s.another(func(c *nft.Conn) { c.FlushSet(o.carried4); c.FlushSet(o.carried6) })
		return
	}
	s.guard.carriedUntil = time.Now()
	s.must(s.putBack(time.Now()))
}

func TestFirstLoadKeepsSessions(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, nil)
				session, quiet := s.connect(f.stranger, f.gateway, "22"), s.connect(f.stranger, f.gateway, "22")
				s.open()
				s.load(0)
				s.echoes(session)
				s.dark(f.stranger, f.gateway, "22")
				s.endCarry()
				s.echoes(session)
				s.dead(quiet) // it had ten minutes to say something
			})
		}
	})
}

// TestFirstLoadKeepsPushedSessions: the first word may be the server's.
func TestFirstLoadKeepsPushedSessions(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, guard("tcp/2300"))
				s.push(":2300")
				c, err := s.dial(f.stranger, f.gateway, "2300")
				s.must(err)
				defer c.Close()
				s.open()
				s.load(0)
				for range 50 {
					if !hears(c, lab.Patience) {
						t.Fatal("a session that was there no longer hears its server")
					}
				}
			})
		}
	})
}

// TestFirstLoadKeepsQuietSessions: nobody says a word until the guard is there, and then
// the server does.
func TestFirstLoadKeepsQuietSessions(t *testing.T) {
	for _, f := range bothFamilies {
		t.Run(f.name, func(t *testing.T) {
			s := newSite(t, guard("tcp/2300"))
			accept := s.listen(":2300")
			client, err := s.dial(f.stranger, f.gateway, "2300")
			s.must(err)
			defer client.Close()
			server := accept(client)
			s.open()
			s.load(0)
			s.speaks(server, client)
		})
	}
}

// TestCarriedFlowAdmitsNoNewConnection: the address and port pair alone is not enough.
func TestCarriedFlowAdmitsNoNewConnection(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, nil)
				from := net.JoinHostPort(f.stranger, "4000")
				session, err := s.dial(from, f.gateway, "22")
				s.must(err)
				s.open()
				s.load(0)
				s.must(session.(*net.TCPConn).SetLinger(0)) // no TIME_WAIT in the way
				s.must(session.Close())
				s.dark(from, f.gateway, "22")
			})
		}
	})
}

// TestFirstLoadKeepsDNATSessions: no socket of this host knows them.
func TestFirstLoadKeepsDNATSessions(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, guard("tcp/2222"))
				s.inner()
				s.publish(f)
				session := s.connect(f.stranger, f.gateway, "2222")
				s.open()
				s.load(0)
				s.echoes(session)
				s.dark(f.stranger, f.gateway, "2222")
				s.endCarry()
				s.echoes(session)
			})
		}
	})
}

// TestFirstLoadKeepsConnectedUDP: a server that has connected its socket to a client.
func TestFirstLoadKeepsConnectedUDP(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, guard("udp/5000"))
		client := s.udp(s.client, "192.0.2.3:4000")
		var server net.Conn
		s.must(s.gw.Do(func() (err error) {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5000}}
			server, err = d.Dial("udp", "192.0.2.3:4000")
			return err
		}))
		defer server.Close()
		s.open()
		s.load(0)
		s.send(client, "192.0.2.1:5000")
		if !s.gets(server.(*net.UDPConn), lab.Patience) {
			t.Error("the flow was cut")
		}
	})
}

// TestSecondLoadStillCarries: guard, then run, before the session has said a word.
func TestSecondLoadStillCarries(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, nil)
				session := s.connect(f.stranger, f.gateway, "22")
				s.open()
				s.load(0)
				s.open()
				s.load(0)
				s.echoes(session)
			})
		}
	})
}

func TestPutBackStillCarries(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, nil)
		session := s.connect("192.0.2.3", "192.0.2.1", "22")
		s.open()
		s.load(0)
		s.watch()
		s.flushRuleset()
		lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
		s.echoes(session)
	})
}

func TestMarkFirst(t *testing.T) {
	s := guarded(t, nil)
	s.flushRuleset()
	session := s.connect("192.0.2.3", "192.0.2.1", "22")
	s.must(MarkFirst(s.config.State))
	s.load(0) // by the same process: another one's mark is seen
	s.echoes(session)
	s.must(MarkFirst(t.TempDir())) // where nothing is, nothing is to be done
}

// TestOwnFlowOverFirstLoad: a flow that this host opened from a guarded port.
func TestOwnFlowOverFirstLoad(t *testing.T) {
	for _, f := range bothFamilies {
		t.Run(f.name, func(t *testing.T) {
			s := newSite(t, guard("tcp/2200"))
			echo, err := lab.EchoServer(s.client, ":7000")
			s.must(err)
			defer echo.Close()
			c, err := lab.Dial(s.gw, net.JoinHostPort(f.gateway, "2200"), net.JoinHostPort(f.alice, "7000"), lab.Patience)
			s.must(err)
			defer c.Close()
			s.open()
			s.load(0)
			s.echoes(c)
		})
	}
}

func TestFlowKeys(t *testing.T) {
	for _, f := range []flow{
		{spa.TCP, netip.MustParseAddrPort("192.0.2.3:4000"), netip.MustParseAddrPort("192.0.2.1:22")},
		{spa.UDP, netip.MustParseAddrPort("[2001:db8::3]:4000"), netip.MustParseAddrPort("[2001:db8::1]:53")},
	} {
		v4, v6 := flowElements([]flow{f}, time.Microsecond)
		if d := append(v4, v6...)[0].Timeout; d.Milliseconds() < 1 {
			t.Errorf("%v: carried for %v, which the kernel takes for ever", f, d)
		}
		if got := flowOf(append(v4, v6...)[0].Key); got != f {
			t.Errorf("got %v, want %v", got, f)
		}
	}
}
