package firewall

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// endCarry removes the flows that the first load carries, as time does.
func (s *site) endCarry() {
	s.Helper()
	if s.kind.programs == "" {
		o := nftables.NewObjects(0)
		s.another(func(c *nft.Conn) { c.FlushSet(o.Carried4); c.FlushSet(o.Carried6) })
		return
	}
	for i := range s.state.carried {
		s.state.carried[i].Until = time.Now()
	}
	s.must(s.putBack(time.Now()))
}

func TestFirstLoadKeepsSessions(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, nil)
		session, quiet := s.connect(f.stranger, f.gateway, "22"), s.connect(f.stranger, f.gateway, "22")
		s.open()
		s.load(0)
		s.echoes(session)
		s.dark(f.stranger, f.gateway, "22")
		s.endCarry()
		s.echoes(session)
		s.dead(quiet) // it had hours to send something
	})
}

// TestFirstLoadKeepsLinkLocalSessions: a first load carries link-local sessions, on their link.
func TestFirstLoadKeepsLinkLocalSessions(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, nil)
		s.twoLinks()
		session := s.opensNear(s.client, "vc", lab.Patience)
		if session == nil {
			t.Fatal("there is no session")
		}
		s.open()
		s.load(0)
		s.echoes(session)
		if s.opensNear(s.client, "vc", silence) != nil {
			t.Error("a new session is let in")
		}
		s.endCarry()
		s.echoes(session)
	})
}

// TestFirstLoadKeepsPushedSessions: the server may send the first packet.
func TestFirstLoadKeepsPushedSessions(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, guarding("tcp/2300"))
		s.push(":2300")
		c := lab.Value(s.dial(f.stranger, f.gateway, "2300"))(s)
		defer c.Close()
		s.open()
		s.load(0)
		keepsHearing(t, c)
	})
}

// TestFirstLoadKeepsQuietSessions: both sides are silent until the guard is there, and then the server speaks.
func TestFirstLoadKeepsQuietSessions(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, guarding("tcp/2300"))
		accept := s.listen(":2300")
		client := lab.Value(s.dial(f.stranger, f.gateway, "2300"))(s)
		defer client.Close()
		server := accept(client)
		s.open()
		s.load(0)
		s.speaks(server, client)
	})
}

// TestCarriedFlowAdmitsNoNewConnection: the carried pair of addresses and ports alone admits no new connection.
func TestCarriedFlowAdmitsNoNewConnection(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, nil)
		from := net.JoinHostPort(f.stranger, "4000")
		session := lab.Value(s.dial(from, f.gateway, "22"))(s)
		s.open()
		s.load(0)
		s.must(session.(*net.TCPConn).SetLinger(0)) // so that no TIME_WAIT blocks the port
		s.must(session.Close())
		s.dark(from, f.gateway, "22")
	})
}

// TestFirstLoadKeepsDNATSessions: sessions without a socket on this host are carried too.
func TestFirstLoadKeepsDNATSessions(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, guarding("tcp/2222"))
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

// TestFirstLoadKeepsRedirectedSessions: sessions that came by a port that another tool leads to the guarded one are
// carried, and their ports admit no other.
func TestFirstLoadKeepsRedirectedSessions(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, nil)
		s.redirect()
		from := net.JoinHostPort(f.stranger, "4000")
		session := s.connect(from, f.gateway, "2222")
		s.open()
		s.load(0)
		// The server's keepalive, after 15 seconds, leaves in any case, and then the guard knows the flow.
		if err := lab.Echoes(session, "is anybody there?", counterPatience); err != nil {
			t.Fatalf("got %v, want an echo", err)
		}
		s.dark(f.stranger, f.gateway, "2222")
		s.must(session.(*net.TCPConn).SetLinger(0)) // so that no TIME_WAIT blocks the port
		s.must(session.Close())
		s.dark(from, f.gateway, "2222")
	})
}

// TestFirstLoadKeepsConnectedUDP: a server that has connected its socket to a client.
func TestFirstLoadKeepsConnectedUDP(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, guarding("udp/5000"))
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

// TestSecondLoadStillCarries: guard, then run, before the session has sent anything.
func TestSecondLoadStillCarries(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, nil)
		session := s.connect(f.stranger, f.gateway, "22")
		s.open()
		s.load(0)
		s.open()
		s.load(0)
		s.echoes(session)
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

func TestForceFirstLoad(t *testing.T) {
	s := guarded(t, nil)
	s.flushRuleset()
	session := s.connect("192.0.2.3", "192.0.2.1", "22")
	s.must(ForceFirstLoad(s.config.State))
	s.load(0) // by the same process, which sees another process's phase
	s.echoes(session)
	s.must(ForceFirstLoad(t.TempDir())) // nothing to do where there is nothing
}

// TestOwnFlowOverFirstLoad: a flow that this host opened from a guarded port.
func TestOwnFlowOverFirstLoad(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := newSite(t, guarding("tcp/2200"))
		echo := lab.Value(lab.EchoServer(s.client, ":7000"))(s)
		defer echo.Close()
		c, err := lab.Dial(s.gw, net.JoinHostPort(f.gateway, "2200"), net.JoinHostPort(f.alice, "7000"), lab.Patience)
		s.must(err)
		defer c.Close()
		s.open()
		s.load(0)
		s.echoes(c)
	})
}

func TestFlowKeys(t *testing.T) {
	for _, f := range []guard.Flow{
		{Proto: service.TCP, Remote: netip.MustParseAddrPort("192.0.2.3:4000"),
			Local: netip.MustParseAddrPort("192.0.2.1:22")},
		{Proto: service.UDP, Remote: netip.MustParseAddrPort("[2001:db8::3]:4000"),
			Local: netip.MustParseAddrPort("[2001:db8::1]:53")},
	} {
		v4, v6 := nftables.FlowElements([]guard.Carried{{Flow: f, Remaining: time.Microsecond}})
		if d := append(v4, v6...)[0].Timeout; d.Milliseconds() < 1 {
			t.Errorf("%v: carried for %v, which the kernel reads as for ever", f, d)
		}
		if got := nftables.FlowOf(append(v4, v6...)[0].Key); got != f {
			t.Errorf("got %v, want %v", got, f)
		}
	}
}

// carriedFor returns how long the guard in place carries the flows to each port.
func (s *site) carriedFor() map[service.Ports]time.Duration {
	s.Helper()
	flows := lab.Value(s.backend.Carried())(s)
	times := make(map[service.Ports]time.Duration)
	for _, c := range flows {
		p := service.Ports{Proto: c.Proto, Low: c.Local.Port(), High: c.Local.Port()}
		times[p] = max(times[p], c.Remaining)
	}
	return times
}

// TestCarriedForANight: a TCP session may be silent for hours and then continue; flows of UDP, and flows to a port
// whose sessions end with the grant, have minutes. A later load, and another configuration, prolong nothing.
func TestCarriedForANight(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, func(c *Config) {
			c.Guarded = append(rangesOf("tcp/22"), rangesOf("tcp/2300")...)
			c.Guarded = append(c.Guarded, rangesOf("udp/2400")...)
			c.Cut = rangesOf("tcp/2300")
		})
		accept := s.listen(":2300")
		quiet := s.connect("192.0.2.3", "192.0.2.1", "22")
		s.talk(accept, "192.0.2.3", "192.0.2.1", "2300")
		s.connectUDP("192.0.2.1:2400", "192.0.2.3:2400")
		before := make(map[service.Ports]time.Duration)
		want := func(when string, night ...string) {
			t.Helper()
			times := s.carriedFor()
			if len(times) != 3 {
				t.Errorf("%s: carried are %v, want three ports", when, times)
			}
			for p, left := range times {
				long := slices.Contains(night, p.String())
				if long && left < 11*time.Hour || !long && left > carryFor || before[p] > 0 && left >= before[p] {
					t.Errorf("%s: %v is carried for %v, after %v", when, p, left, before[p])
				}
			}
			before = times
		}
		s.open()
		s.load(0)
		want("first load", "tcp/22")
		first := time.Now()
		lab.Eventually(t, "a second to pass, which is what ipset counts in",
			func() bool { return time.Since(first) > 1100*time.Millisecond })
		s.open()
		s.load(0)
		want("next load", "tcp/22")
		s.echoes(quiet)
		before[ports("udp/2400")], before[ports("tcp/2300")] = 0, 0 // not read again, but restored by this process's clock
		c := s.config
		c.Cut = append(slices.Clone(c.Cut), rangesOf("tcp/22")...)
		s.must(s.Reconfigure(t.Context(), c, time.Now()))
		want("the port cuts by now")
	})
}

// connectUDP returns a connected socket of the gateway, such as that of a server with one socket per client.
func (s *site) connectUDP(local, remote string) *net.UDPConn {
	s.Helper()
	var conn *net.UDPConn
	s.must(s.gw.Do(func() (err error) {
		from, to := netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		return err
	}))
	s.Cleanup(func() { conn.Close() })
	return conn
}

// TestFirstLoadKeepsRedirectedUDP: the same for a server that has connected its socket to a client.
func TestFirstLoadKeepsRedirectedUDP(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, guarding("udp/5000"))
		s.nft("table inet leads { chain c { type nat hook prerouting priority -100; udp dport 5001 redirect to :5000; }; }")
		client := s.udp(s.client, net.JoinHostPort(f.stranger, "4000"))
		server := s.connectUDP(net.JoinHostPort(f.gateway, "5000"), net.JoinHostPort(f.stranger, "4000"))
		asks := func(when string) {
			t.Helper()
			s.send(client, net.JoinHostPort(f.gateway, "5001"))
			if !s.gets(server, lab.Patience) {
				t.Errorf("%s: a datagram was lost", when)
			}
		}
		asks("before the guard")
		s.open()
		s.load(0)
		asks("with the guard")
	})
}
