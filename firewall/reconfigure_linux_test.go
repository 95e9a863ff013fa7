package firewall

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// becomes changes the configuration of a guard in place.
func (s *site) becomes(change func(*Config)) {
	s.Helper()
	s.must(s.reconfigured(change))
}

func (s *site) reconfigured(change func(*Config)) error {
	next := s.config
	next.Guarded = slices.Clone(next.Guarded)
	change(&next)
	err := s.gw.Do(func() error { return s.Reconfigure(s.Context(), next, time.Now()) })
	if err == nil {
		s.config = next
	}
	return err
}

func guards(ranges ...string) func(*Config) {
	return func(c *Config) {
		c.Guarded = nil
		for _, r := range ranges {
			c.Guarded = append(c.Guarded, ports(r))
		}
	}
}

// grantPorts gives alice ports through a service of that name.
func (s *site) grantPorts(service, source string, last time.Duration, ranges ...string) {
	s.Helper()
	now := time.Now()
	g := sshGrant("alice", source, 0)
	g.Service, g.Ports, g.Until = service, nil, now.Add(last)
	for _, r := range ranges {
		g.Ports = append(g.Ports, ports(r))
	}
	s.must(s.Grant(s.Context(), []Grant{g}, now))
}

func TestReconfigureGuardsAnotherPort(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.serve(":2300")
		session := s.connect(f.stranger, f.gateway, "2300")
		s.grant("alice", f.alice, long)
		mine := s.connect(f.alice, f.gateway, "22")
		s.becomes(guards("tcp/22", "tcp/2300"))
		s.dark(f.stranger, f.gateway, "2300")
		s.echoes(session) // an existing session is not cut
		s.echoes(mine)
		s.connect(f.alice, f.gateway, "22")
		s.dark(f.alice, f.gateway, "2300")
		s.endCarry()
		s.echoes(session)
	})
}

// TestReconfigureCarriesNoGapSession: only the sessions of ports that become guarded are carried.
func TestReconfigureCarriesNoGapSession(t *testing.T) {
	s := guarded(t, nil)
	s.serve(":2300")
	s.flushRuleset()
	gap := s.connect("192.0.2.3", "192.0.2.1", "22")
	s.load(0)
	s.dead(gap)
	s.becomes(guards("tcp/22", "tcp/2300"))
	s.dead(gap)
}

func TestReconfigureGuardsLess(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, guarding("tcp/2300-2310"))
		s.serve(":2300")
		s.serve(":2310")
		s.grantPorts("all", "192.0.2.2", long, "tcp/22", "tcp/2300-2310")
		s.grantPorts("gone", "192.0.2.2", long, "tcp/2305-2310")
		s.becomes(guards("tcp/22", "tcp/2300-2303"))
		s.connect("192.0.2.3", "192.0.2.1", "2310")
		s.connect("192.0.2.2", "192.0.2.1", "22")
		s.connect("192.0.2.2", "192.0.2.1", "2300")
		s.dark("192.0.2.3", "192.0.2.1", "2300")
		want := []service.Ports{ports("tcp/22"), ports("tcp/2300-2303")}
		for _, step := range []string{"at once", "after a restart"} {
			if gs := s.Grants(time.Now()); len(gs) != 1 || gs[0].Service != "all" || !slices.Equal(gs[0].Ports, want) {
				t.Errorf("%s: got %v, want the grant for what is guarded", step, gs)
			}
			s.open()
			s.load(0)
		}
		s.becomes(guards("tcp/22", "tcp/2300-2310"))
		s.dark("192.0.2.2", "192.0.2.1", "2310") // a lost grant does not come back
		s.connect("192.0.2.2", "192.0.2.1", "2300")
		s.revoke(Match{})
		s.dark("192.0.2.2", "192.0.2.1", "2300")
		if free := spare(s.ledger); free != s.config.slots {
			t.Errorf("%d slots are free, want all", free)
		}
	})
}

// TestReconfigureMergesGrants: the remaining part of one grant may equal another grant.
func TestReconfigureMergesGrants(t *testing.T) {
	s := guarded(t, guarding("tcp/2300"))
	s.grantPorts("ssh", "192.0.2.2", long/2, "tcp/22")
	s.grantPorts("ssh", "192.0.2.2", long, "tcp/22", "tcp/2300")
	s.becomes(guards("tcp/22"))
	for range 2 {
		gs := s.Grants(time.Now())
		if len(gs) != 1 || time.Until(gs[0].Until) < long*3/4 {
			t.Fatalf("got %v, want the longer of two", gs)
		}
		s.open()
		s.load(0)
	}
}

func TestReconfigureKeeps(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.grant("bob", "192.0.2.4", long)
	s.becomes(func(c *Config) { c.Keep = func(g Grant) bool { return g.Client == "bob" } })
	s.dark("192.0.2.2", "192.0.2.1", "22")
	s.connect("192.0.2.4", "192.0.2.1", "22")
}

// TestReconfigureOtherFields: each field has its effect, and keeps it when the guard is put back.
func TestReconfigureOtherFields(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
		ok     func(*site) bool
	}{
		{"closed", func(c *Config) { c.Closed = Reject }, func(s *site) bool {
			return s.refuses(s.client, "192.0.2.3:0", "192.0.2.1:5000", silence)
		}},
		{"trusted", func(c *Config) { c.Trusted = []string{"vs"} }, func(s *site) bool {
			return s.isOpen("192.0.2.3", "192.0.2.1", "22")
		}},
		{"targets", func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.5")}, Ports: rangesOf("tcp/22")}}
		}, func(s *site) bool {
			return !s.isOpen("192.0.2.3", "198.51.100.5", "22")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := guarded(t, guarding("udp/5000"))
			s.inner()
			if test.ok(s) {
				t.Fatal("the effect is already there")
			}
			s.becomes(test.change)
			lab.Eventually(t, "an effect of the change", func() bool { return test.ok(s) })
			s.watch()
			s.flushRuleset()
			lab.Eventually(t, "the guard, as it was changed", func() bool { return !s.isGone(nftables.TableName) && test.ok(s) })
		})
	}
}

func TestReconfigureThatNeedsARestart(t *testing.T) {
	s := guarded(t, nil)
	for name, change := range map[string]func(*Config){
		"backend": func(c *Config) { c.Backend = BackendDryRun },
		"mode":    func(c *Config) { c.Mode = Admit },
		"admit":   func(c *Config) { c.Admit.Table = "filter" },
		"persist": func(c *Config) { c.Persist = PersistFile },
		"mark":    func(c *Config) { c.Mark = 0x100 },
		"state":   func(c *Config) { c.State = "/elsewhere" },
	} {
		err := s.reconfigured(func(c *Config) { guards("tcp/1")(c); change(c) })
		if !errors.Is(err, errRestart) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want ErrRestart that names it", name, err)
		}
	}
	if err := s.reconfigured(func(c *Config) { c.Guarded[0].Low = 0 }); err == nil {
		t.Error("an invalid range was accepted")
	}
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestFailedReconfigure: the guard, the grants and the ledger are as they were.
func TestFailedReconfigure(t *testing.T) {
	s := guarded(t, guarding("tcp/2300"))
	s.serve(":2300")
	s.grantPorts("ssh", "192.0.2.2", long/2, "tcp/22")
	s.grantPorts("ssh", "192.0.2.2", long, "tcp/22", "tcp/2300")
	s.grantPorts("web", "192.0.2.2", long, "tcp/2300")
	b := &stubborn{Backend: s.backend}
	s.backend = b
	b.no.Store(true)
	if err := s.reconfigured(guards("tcp/22")); err == nil {
		t.Fatal("got no error")
	}
	b.no.Store(false)
	check := func(step string) {
		t.Helper()
		if gs := s.Grants(time.Now()); len(gs) != 3 || spare(s.ledger) != s.config.slots-3 {
			t.Errorf("%s: got %v and %d free slots, want three grants", step, gs, spare(s.ledger))
		}
		s.dark("192.0.2.3", "192.0.2.1", "2300")
		s.connect("192.0.2.2", "192.0.2.1", "2300")
	}
	check("at once")
	s.load(0) // by the unchanged configuration
	check("after a load")
	s.open()
	s.load(0)
	check("after a restart")
	s.revoke(Match{Services: []string{"web"}})
	s.connect("192.0.2.2", "192.0.2.1", "22")
	if gs := s.Grants(time.Now().Add(long * 3 / 4)); len(gs) != 1 {
		t.Errorf("got %v at the end of the shorter grant, want the longer", gs)
	}
}

func TestReconfigureWithoutAGuard(t *testing.T) {
	s := guarded(t, nil)
	s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
	if err := s.reconfigured(guards("tcp/22")); !errors.Is(err, ErrTornDown) {
		t.Errorf("got %v, want ErrTornDown", err)
	}
	s.open()
	if err := s.reconfigured(guards("tcp/22")); !errors.Is(err, errNotLoaded) {
		t.Errorf("got %v, want %v", err, errNotLoaded)
	}
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

// TestReconfigureOnTrial: a client that connected a moment before has confirmed the guard; otherwise the trial
// continues.
func TestReconfigureOnTrial(t *testing.T) {
	for _, entered := range []bool{true, false} {
		s := newSite(t, nil)
		s.open()
		s.load(long)
		s.grant("alice", "192.0.2.2", long)
		if entered {
			s.connect("192.0.2.2", "192.0.2.1", "22")
		}
		s.becomes(guards("tcp/22", "tcp/80"))
		s.must(s.confirm(time.Now()))
		if s.state.confirmBy.IsZero() != entered {
			t.Errorf("entered %v: the trial lasts until %v", entered, s.state.confirmBy)
		}
	}
}

// TestReconfigureUnderSiege: ports that stay guarded are open at no instant.
func TestReconfigureUnderSiege(t *testing.T) {
	s := ownedGuard(t, nil)
	siege := s.besiege()
	siege.during(func() {
		for i := range 100 {
			s.becomes(guards([]string{"tcp/1", "tcp/80", "udp/53"}[i%3], "udp/5000", "tcp/22", "tcp/8000-8010"))
		}
	})
	siege.lift()
}

func TestWithin(t *testing.T) {
	for _, test := range []struct{ ranges, others, want string }{
		{"tcp/22", "tcp/22", "tcp/22"},
		{"tcp/22", "udp/22", ""},
		{"tcp/20-30", "tcp/25-40", "tcp/25-30"},
		{"tcp/20-30 udp/5", "tcp/20-21 tcp/30 udp/1-9", "tcp/20-21 tcp/30 udp/5"},
		{"tcp/65530-65535", "tcp/65535", "tcp/65535"},
		{"tcp/5-7 tcp/6-9", "tcp/1-100", "tcp/5-7 tcp/6-9"},
	} {
		got := within(rangesOf(test.ranges), rangesOf(test.others))
		if !slices.Equal(got, rangesOf(test.want)) {
			t.Errorf("%s within %s: got %v, want %s", test.ranges, test.others, got, test.want)
		}
	}
}

func rangesOf(s string) []service.Ports {
	var rs []service.Ports
	for _, r := range strings.Fields(s) {
		rs = append(rs, ports(r))
	}
	return rs
}
