package firewall

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/iptables"
	"sallyport/spa/lab"
)

// cutting makes the sessions of ports end with their grants.
func cutting(ranges ...string) func(*Config) {
	return func(c *Config) {
		for _, r := range ranges {
			c.Guarded, c.Cut = append(c.Guarded, ports(r)), append(c.Cut, ports(r))
		}
	}
}

// TestSessionEndsWithItsGrant: the kernel alone ends it, after the daemon has died, whichever side speaks.
func TestSessionEndsWithItsGrant(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, cutting("tcp/2300"))
		accept := s.listen(":2300")
		s.push(":2301") // not guarded
		s.grantPorts("short", f.alice, long, "tcp/2300")
		s.grantPorts("kept", f.alice, long, "tcp/22")
		s.grantPorts("short", f.stranger, long, "tcp/2300")
		kept := s.connect(f.alice, f.gateway, "22")
		mine, theirs := s.talk(accept, f.alice, f.gateway, "2300"), s.talk(accept, f.stranger, f.gateway, "2300")
		s.speaks(mine.server, mine.client)
		s.shorten(Match{Source: netip.MustParseAddr(f.alice)}, time.Second)
		s.die()
		lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "2300") })
		s.mutual(mine, false)
		s.mutual(theirs, true)
		s.echoes(kept) // of another port
	})
}

// mutual checks that both sides of a session hear each other, or that neither does.
func (s *site) mutual(v session, heard bool) {
	s.Helper()
	for _, way := range []struct {
		name     string
		from, to net.Conn
	}{{"the client hears its server", v.server, v.client}, {"the server hears its client", v.client, v.server}} {
		for hears(way.to, time.Millisecond) { // discard what is in flight
		}
		way.from.Write([]byte("news"))
		within := silence
		if heard {
			within = lab.Patience
		}
		if hears(way.to, within) != heard {
			s.Errorf("%s: %v, want %v", way.name, !heard, heard)
		}
	}
}

// TestSessionOfALongerGrant: a session continues as long as its grant is prolonged.
func TestSessionOfALongerGrant(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, cutting("tcp/2300"))
		v := s.prolonged(s.listen(":2300"))
		s.mutual(v, true)
		s.revoke(Match{})
		s.mutual(v, false)
		s.grantPorts("one", "192.0.2.2", long, "tcp/2300") // the session under the grant that was kept continues
		lab.Eventually(t, "what was sent in between", func() bool { return hears(v.client, lab.Patience) })
	})
}

// prolonged returns a session that began under a shorter grant, whose time has passed.
func (s *site) prolonged(accept accepting) (v session) {
	s.Helper()
	inTime(s.T, time.Second, func(within time.Duration) bool {
		s.revoke(Match{})
		before := time.Now()
		s.grantPorts("one", "192.0.2.2", within, "tcp/2300")
		short := time.Now().Add(within)
		c, err := s.attempt("192.0.2.2", "192.0.2.1", "2300", within)
		if err != nil {
			return false
		}
		s.Cleanup(func() { c.Close() })
		v = session{c, accept(c)}
		s.speaks(v.server, v.client)
		s.grantPorts("one", "192.0.2.2", long, "tcp/2300")
		early := time.Since(before) < within
		lab.Eventually(s, "the end of the shorter", func() bool { return time.Now().After(short) })
		return early
	})
	return v
}

// TestDNATSessionEndsWithItsGrant: the replies come from another machine's address.
func TestDNATSessionEndsWithItsGrant(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, cutting("tcp/2222"))
		accept := s.listenOn(s.behind(), ":22")
		s.publish(f)
		s.grantPorts("short", f.alice, long, "tcp/2222")
		s.grantPorts("short", f.stranger, long, "tcp/2222")
		mine, theirs := s.talk(accept, f.alice, f.gateway, "2222"), s.talk(accept, f.stranger, f.gateway, "2222")
		s.shorten(Match{Source: netip.MustParseAddr(f.alice)}, 500*time.Millisecond)
		s.die()
		lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "2222") })
		s.mutual(mine, false)
		s.mutual(theirs, true)
	})
}

func TestUDPSessionEndsWithItsGrant(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, cutting("udp/5000"))
		gateway := net.JoinHostPort(f.gateway, "5000")
		server, mine, theirs := s.talkUDP(f)
		s.shorten(Match{Source: netip.MustParseAddr(f.alice)}, 500*time.Millisecond)
		s.die()
		other := s.udp(s.client, net.JoinHostPort(f.alice, "4001"))
		lab.Eventually(t, "the grant's end", func() bool {
			s.send(other, gateway)
			return !s.gets(server, silence)
		})
		server.WriteTo([]byte("news"), mine.LocalAddr())
		if s.gets(mine, silence) {
			t.Error("the client still hears its server")
		}
		s.send(mine, gateway)
		if s.gets(server, silence) {
			t.Error("the server still hears its client")
		}
		s.utters(server, theirs)
	})
}

// TestCutPortsLeaveOthersAlone: flows of the host's own from and to such a port, transit to one, trusted interfaces,
// loopback.
func TestCutPortsLeaveOthersAlone(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, cutting("tcp/2200", "tcp/2201", "tcp/7000"))
		s.inner()
		for _, on := range []struct {
			h    *lab.Host
			addr string
		}{{s.client, "192.0.2.2:7000"}, {s.gw, "192.0.2.1:2201"}} {
			echo := lab.Value(lab.EchoServer(on.h, on.addr))(s)
			defer echo.Close()
		}
		for _, way := range []struct {
			name     string
			from     *lab.Host
			src, dst string
		}{
			{"own, from a cut port to a cut port", s.gw, "192.0.2.1:2200", "192.0.2.2:7000"},
			{"own, to itself", s.gw, "", "192.0.2.1:2201"},
		} {
			c, err := lab.Dial(way.from, way.src, way.dst, lab.Patience)
			if err != nil {
				t.Errorf("%s: %v", way.name, err)
				continue
			}
			s.echoes(c)
			c.Close()
		}
		s.becomes(func(c *Config) { cutting("tcp/22")(c) })
		s.connect("192.0.2.3", "198.51.100.5", "22") // transit
		s.becomes(func(c *Config) { c.Trusted = []string{"vs"} })
		s.connect("192.0.2.3", "192.0.2.1", "22")
	})
}

// TestSessionEndsThoughTheGuardWasAway: the memory of admitted peers is lost with the guard, but marks are not.
func TestSessionEndsThoughTheGuardWasAway(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, cutting("tcp/2300"))
		accept := s.listen(":2300")
		s.grantPorts("alice", "192.0.2.2", long, "tcp/2300")
		v, quiet := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300"), s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
		s.flushRuleset()
		s.load(0)
		s.mutual(v, true)
		s.flushRuleset()
		s.load(0)
		if b, ok := s.backend.(*iptables.Backend); ok { // its sets stay
			s.must(b.Sets.Replace(b.AddressSet(iptables.SetMet, ipset.HashIPPort, false), nil))
		}
		s.revoke(Match{})
		s.mutual(v, false)
		quiet.client.Write([]byte("news")) // before the server has said a word
		if hears(quiet.server, silence) {
			t.Error("a server still hears its client")
		}
	})
}

// TestTargetSessionEndsThoughTheGuardWasAway: the same at a machine behind.
func TestTargetSessionEndsThoughTheGuardWasAway(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: rangesOf("tcp/22")}}
			c.Cut = rangesOf("tcp/22")
		})
		accept := s.listenOn(s.behind(), ":22")
		s.must(s.Grant(t.Context(), []Grant{s.toInner("alice", f.alice, f)}, time.Now()))
		v := s.talk(accept, f.alice, innerAddr[f.name], "22")
		s.flushRuleset()
		s.load(0)
		if b, ok := s.backend.(*iptables.Backend); ok { // its sets stay
			s.must(b.Sets.Replace(b.AddressSet(iptables.SetMet, ipset.HashIPPort, f.name == "IPv6"), nil))
		}
		s.revoke(Match{})
		s.mutual(v, false)
	})
}

// TestCutPortRejects: the reset for a stranger leaves that port too, and for a client whose grant has ended.
func TestCutPortRejects(t *testing.T) {
	s := guarded(t, func(c *Config) { cutting("tcp/2300", "udp/5000")(c); c.Closed = Reject })
	s.serve(":2300")
	for _, f := range bothFamilies {
		if _, err := s.dial(f.stranger, f.gateway, "2300"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v from a TCP port that rejects, want a refusal", err)
		}
		s.refusal(s.client, net.JoinHostPort(f.stranger, "0"), net.JoinHostPort(f.gateway, "5000"))
		s.grantPorts("one", f.alice, long, "tcp/2300")
		s.connect(f.alice, f.gateway, "2300")
		s.revoke(Match{})
		if _, err := s.attempt(f.alice, f.gateway, "2300", lab.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a client whose grant has ended got %v, want a refusal", err)
		}
	}
}

// TestCutPortOverFirstLoad: a session from before the first load lives as long as it is carried.
func TestCutPortOverFirstLoad(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := newSite(t, cutting("tcp/2300", "tcp/2222"))
		accept := s.listen(":2300")
		v := s.talk(accept, f.stranger, f.gateway, "2300")
		inner := s.listenOn(s.behind(), ":22")
		s.publish(f)
		led, quiet := s.talk(inner, f.stranger, f.gateway, "2222"), s.talk(inner, f.stranger, f.gateway, "2222")
		s.open()
		s.load(0)
		s.mutual(v, true)
		s.mutual(led, true)
		s.endCarry()
		s.mutual(v, false)
		s.mutual(led, false)
		quiet.server.Write([]byte("news")) // the server sends the first packet since the load
		if hears(quiet.client, silence) {
			t.Error("a session that was carried continues")
		}
	})
}
