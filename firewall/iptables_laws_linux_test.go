package firewall

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/sessions"
	"sallyport/spa/lab"
)

// twoLinks gives the gateway a second link, and fe80::1 on both, so that fe80::a is alice on the first and a stranger
// on the second.
func (s *site) twoLinks() (stranger *lab.Host, first, second uint32) {
	s.Helper()
	stranger = lab.New(s, "stranger")[0]
	s.must(lab.Link(s.gw, "out", stranger, "eth0"))
	s.must(s.gw.AddAddr("vs", "fe80::1/64"))
	s.must(s.gw.AddAddr("out", "fe80::1/64"))
	s.must(s.client.AddAddr("vc", "fe80::a/64"))
	s.must(stranger.AddAddr("eth0", "fe80::a/64"))
	index := func(dev string) uint32 {
		i, _, err := s.gw.Interface(dev)
		s.must(err)
		return uint32(i)
	}
	return stranger, index("vs"), index("out")
}

// nearby are neighbours on the first of two links.
var nearby = sides{name: "link-local", alice: "fe80::a", gateway: "fe80::1"}

// dev returns a function that formats an address and port for a host, with the host's own zone for nearby.
func (s *site) dev(f sides, h *lab.Host, dev string) func(addr, port string) string {
	s.Helper()
	zone := ""
	if f == nearby {
		index, _, err := h.Interface(dev)
		s.must(err)
		zone = "%" + strconv.Itoa(index)
	}
	return func(addr, port string) string { return net.JoinHostPort(addr+zone, port) }
}

// near returns a grant of tcp/22 for fe80::a on a link.
func near(client string, link uint32, last time.Duration) Grant {
	g := sshGrant(client, "2001:db8::2", last)
	g.Source = netip.MustParseAddr("fe80::a").WithZone(strconv.Itoa(int(link)))
	return g
}

// opensNear connects to tcp/22 as fe80::a of a host, or returns nil.
func (s *site) opensNear(h *lab.Host, dev string, within time.Duration) net.Conn {
	s.Helper()
	return s.opensNearAt(h, dev, "22", within)
}

func (s *site) opensNearAt(h *lab.Host, dev, port string, within time.Duration) net.Conn {
	s.Helper()
	index, _, err := h.Interface(dev)
	s.must(err)
	zone := "%" + strconv.Itoa(index) // the net package caches interface names across namespaces
	c, err := lab.Dial(h, "fe80::a"+zone, net.JoinHostPort("fe80::1"+zone, port), within)
	if err != nil {
		return nil
	}
	s.Cleanup(func() { c.Close() })
	return c
}

// TestLinkLocalGrant: a grant is valid only on its link, and its sessions continue there.
func TestLinkLocalGrant(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		stranger, first, _ := s.twoLinks()
		s.must(s.Grant(s.Context(), []Grant{near("alice", first, long)}, time.Now()))
		session := s.opensNear(s.client, "vc", lab.Patience)
		if session == nil {
			t.Fatal("alice is shut out on her link")
		}
		if s.opensNear(stranger, "eth0", silence) != nil {
			t.Error("a stranger on another link is let in")
		}
		s.load(0)
		if s.opensNear(s.client, "vc", lab.Patience) == nil {
			t.Error("alice is shut out on her link after a load")
		}
		s.revoke(Match{})
		if s.opensNear(s.client, "vc", silence) != nil {
			t.Error("alice is let in without a grant")
		}
		s.echoes(session)
	})
}

// TestLinkLocalGrantAtATarget: a link-local client's grant does not reach the same port of a listed address.
func TestLinkLocalGrantAtATarget(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, listed := range []bool{false, true} {
			s := k.guarded(t, func(c *Config) {
				if listed {
					c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")}, Ports: rangesOf("tcp/22")}}
				}
			})
			_, first, _ := s.twoLinks()
			s.must(s.Grant(s.Context(), []Grant{near("alice", first, long)}, time.Now()))
			if s.opensNear(s.client, "vc", lab.Patience) == nil {
				t.Error("alice is shut out on her link")
			}
			index, _, err := s.client.Interface("vc")
			s.must(err)
			within := map[bool]time.Duration{false: lab.Patience, true: silence}[listed]
			c, err := lab.Dial(s.client, "fe80::a%"+strconv.Itoa(index), "[2001:db8::1]:22", within)
			if err == nil {
				c.Close()
			}
			if (err != nil) != listed {
				t.Errorf("listed %v: got %v from the other address", listed, err)
			}
		}
	})
}

// TestOneLinkAtATime: sets cannot distinguish grants of one address on two links.
func TestOneLinkAtATime(t *testing.T) {
	iptablesOnly(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		stranger, first, second := s.twoLinks()
		s.must(s.Grant(s.Context(), []Grant{near("alice", first, long)}, time.Now()))
		err := s.Grant(s.Context(), []Grant{near("bob", second, long)}, time.Now())
		if err == nil || !strings.Contains(err.Error(), "one link at a time") {
			t.Fatalf("got %v, want the error that there is a grant on another link", err)
		}
		if s.opensNear(stranger, "eth0", silence) != nil {
			t.Error("bob is let in by a grant that was refused")
		}
		s.revoke(Match{})
		s.must(s.Grant(s.Context(), []Grant{near("bob", second, long)}, time.Now()))
		if s.opensNear(stranger, "eth0", lab.Patience) == nil {
			t.Error("bob is shut out on the second link")
		}
		if s.opensNear(s.client, "vc", silence) != nil {
			t.Error("alice is let in by bob's grant")
		}
	})
}

// TestLinkThatIsGone: a grant for a link that is gone is refused.
func TestLinkThatIsGone(t *testing.T) {
	s := kindNamed(t, "iptables-nft").guarded(t, nil)
	if err := s.Grant(s.Context(), []Grant{near("alice", 999, long)}, time.Now()); err == nil {
		t.Error("got no error")
	}
	s.grant("alice", "192.0.2.2", long)
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

// TestUDPOfTheRevokedIsForgotten: the guard remembers peers whose flows connection tracking has forgotten, even over
// a load.
func TestUDPOfTheRevokedIsForgotten(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("udp/5000"))
		gateway := net.JoinHostPort(f.gateway, "5000")
		server := s.udp(s.gw, gateway)
		client, other := s.udp(s.client, net.JoinHostPort(f.alice, "4000")),
			s.udp(s.client, net.JoinHostPort(f.stranger, "4000"))
		s.grantPorts("one", f.alice, long, "udp/5000")
		s.send(client, gateway)
		if !s.gets(server, lab.Patience) {
			t.Fatal("the question was lost")
		}
		s.revoke(Match{})
		s.load(0)
		s.forgetFlows()
		server.WriteTo([]byte("news"), client.LocalAddr())
		if s.gets(client, silence) {
			t.Error("the server begins a flow with a client that was revoked")
		}
		s.send(client, gateway)
		if s.gets(server, silence) {
			t.Error("the client is let in again")
		}
		s.utters(server, other) // of the host's own
		s.send(other, gateway)
		if !s.gets(server, lab.Patience) {
			t.Error("the answer to a flow of the host's own was lost")
		}
	})
}

// TestUDPOfAGapIsForgotten: a server that tried to send in a flow made while the guard was away begins no flow with
// that peer after connection tracking has forgotten the first one, whether or not sessions end with their grants.
func TestUDPOfAGapIsForgotten(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for what, guards := range map[string]func(...string) func(*Config){"keep": guarding, "cut": cutting} {
			t.Run(what, func(t *testing.T) { k.gapIsForgotten(t, f, guards("udp/5000")) })
		}
	})
}

func (k kind) gapIsForgotten(t *testing.T, f sides, guards func(*Config)) {
	s := k.guarded(t, guards)
	gateway := net.JoinHostPort(f.gateway, "5000")
	server, client := s.udp(s.gw, gateway), s.udp(s.client, net.JoinHostPort(f.stranger, "4000"))
	s.flushRuleset()
	s.another(func(c *nft.Conn) { // this keeps connection tracking enabled
		chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
	})
	s.exchange(client, server)
	s.load(0)
	for _, what := range []string{"continues", "begins"} {
		server.WriteTo([]byte("news"), client.LocalAddr())
		if s.gets(client, silence) {
			t.Errorf("the server %s to speak to a client of the gap", what)
		}
		s.forgetFlows()
	}
	s.send(client, gateway)
	if s.gets(server, silence) {
		t.Error("the client is let in")
	}
}

// TestUDPServerSpeaksFirst: datagrams from a server to a client with a grant are a session of that grant, even if the
// client is silent: it outlives the grant, and a cut ends it.
func TestUDPServerSpeaksFirst(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range append(bothFamilies, nearby) {
			s := k.guarded(t, guarding("udp/5000"))
			_, link, _ := s.twoLinks()
			own, theirs := s.dev(f, s.gw, "vs"), s.dev(f, s.client, "vc")
			server, client := s.udp(s.gw, own(f.gateway, "5000")), s.udp(s.client, theirs(f.alice, "4000"))
			utters := func(within time.Duration) bool {
				server.WriteToUDPAddrPort([]byte("news"), netip.MustParseAddrPort(own(f.alice, "4000")))
				return s.gets(client, within)
			}
			g := near("alice", link, long)
			if f != nearby {
				g.Source = netip.MustParseAddr(f.alice)
			}
			g.Ports[0] = ports("udp/5000")
			s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
			s.flushRuleset()
			s.another(func(c *nft.Conn) { // this keeps connection tracking enabled
				chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
			})
			s.send(client, theirs(f.gateway, "5000"))
			if !s.gets(server, lab.Patience) || !utters(lab.Patience) {
				t.Fatalf("%s: nothing is heard while the guard is away", f.name)
			}
			s.load(0)
			if !utters(lab.Patience) {
				t.Errorf("%s: a client with a grant does not hear its server", f.name)
			}
			gone := s.revoke(Match{})
			if !utters(lab.Patience) {
				t.Errorf("%s: the session ended with its grant", f.name)
			}
			_, err := s.Cut(t.Context(), gone)
			s.must(err)
			s.forgetFlows()
			if utters(silence) {
				t.Errorf("%s: the server speaks to a client that was cut off", f.name)
			}
		}
	})
}

// forgetFlows deletes all connection tracking entries.
func (s *site) forgetFlows() {
	s.Helper()
	s.must(s.gw.Do(func() error {
		all, err := sessions.Open()
		if err != nil {
			return err
		}
		defer all.Close()
		var errs []error
		err = all.Entries(func(e *sessions.Entry) { errs = append(errs, all.Untrack(e)) })
		return errors.Join(append(errs, err)...)
	}))
}

// TestRedirectIsNoWayRound: another port that leads to a guarded one opens with it and, if sessions are cut, ends
// with it.
func TestRedirectIsNoWayRound(t *testing.T) {
	iptablesOnly(t, func(t *testing.T, k kind) {
		s := k.newSite(t, cutting("tcp/2300"))
		accept := s.listen(":2300")
		for _, program := range []string{"iptables", "ip6tables"} {
			for port, to := range map[string]string{"2222": "22", "2323": "2300"} {
				s.program(program, "-w", lockWait, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", port, "-j",
					"REDIRECT", "--to-ports", to)
			}
		}
		s.open()
		s.load(0)
		for _, f := range bothFamilies {
			for _, port := range []string{"2222", "2323"} {
				s.dark(f.alice, f.gateway, port)
			}
			s.grantPorts("alice", f.alice, long, "tcp/22", "tcp/2300")
			s.dark(f.stranger, f.gateway, "2222")
			kept := s.connect(f.alice, f.gateway, "2222")
			cut := s.talk(accept, f.alice, f.gateway, "2323")
			s.revoke(Match{})
			s.echoes(kept)
			s.mutual(cut, false)
			s.dark(f.alice, f.gateway, "2222")
		}
	})
}
