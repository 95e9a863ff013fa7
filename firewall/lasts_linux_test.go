package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/clock"
	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// lasts returns how long the kernel lets the source keep tcp/22; zero: it does not have it.
func (s *site) lasts(source string) time.Duration {
	s.Helper()
	a := netip.MustParseAddr(source)
	switch b := s.backend.(type) {
	case *nftables.Backend:
		return s.lastsIn(b, map[bool]*nft.Set{true: b.Objects.Grants4, false: b.Objects.Grants6}[a.Is4()], a)
	case *nftables.Admitting:
		return s.lastsIn(b.Backend, map[bool]*nft.Set{true: b.Set4, false: b.Set6}[a.Is4()], a)
	case *iptables.Backend:
		if b.Sets == nil {
			return s.lastsByRule(a)
		}
		ms := lab.Value(b.Sets.List(iptables.SetName(iptables.SetGrants, a.Is6())))(s)
		for _, m := range ms {
			if m.IP == a && m.Port == 22 {
				return time.Duration(m.Seconds) * time.Second
			}
		}
	}
	return 0
}

func (s *site) lastsIn(n *nftables.Backend, set *nft.Set, a netip.Addr) time.Duration {
	s.Helper()
	es := lab.Value(n.Elements(set))(s)
	for _, e := range es {
		if strings.HasPrefix(string(e.Key), string(nftables.PortKey(a.AsSlice(), service.TCP, 22))) {
			return e.Expires
		}
	}
	return 0
}

// lastsByRule finds the last second of the rules for a source.
func (s *site) lastsByRule(a netip.Addr) time.Duration {
	s.Helper()
	save := map[bool]string{true: "iptables-save", false: "ip6tables-save"}[a.Is4()]
	var last time.Time
	for line := range strings.Lines(s.program(save, "-t", "mangle")) {
		_, stop, ok := strings.Cut(line, "--datestop ")
		if !ok || !strings.Contains(line, " "+a.String()+"/") {
			continue
		}
		end := lab.Value(time.Parse("2006-01-02T15:04:05", strings.Fields(stop)[0]))(s)
		last = ledger.Later(last, end.Add(time.Second)) // it is still in time
	}
	if last.IsZero() {
		return 0
	}
	return time.Until(last)
}

// late is how much later than it should the kernel may end a grant here: by a whole second if it counts seconds, and
// by how long the machine may stop this process.
const late = time.Minute

// kernelEnds checks when a source loses tcp/22 by the kernel alone.
func (s *site) kernelEnds(source string, at time.Time, what string) {
	s.Helper()
	before := time.Now()
	got := s.lasts(source)
	if got == 0 {
		s.Fatalf("%s: the kernel has no grant for %s", what, source)
	}
	if latest := at.Sub(before) + late; got > latest {
		s.Errorf("%s: the kernel keeps the grant for another %v, want %v at most", what, got, latest)
	}
	if earliest := time.Until(at) - time.Second; got < earliest {
		s.Errorf("%s: the kernel keeps the grant for another %v, want %v at least", what, got, earliest)
	}
}

// waysIn are all ways in which the end of a grant reaches the kernel. In each, the request was made long before the
// kernel is changed, as if something had to wait. Each returns the end of the grant that 192.0.2.2 or its namesake
// has then.
var waysIn = map[string]func(s *site, source string, asked time.Time) (end time.Time){
	"grant": func(s *site, source string, asked time.Time) time.Time {
		return s.asks("alice", source, asked, long)
	},
	"refresh": func(s *site, source string, asked time.Time) time.Time {
		s.asks("alice", source, asked, long/2)
		return s.asks("alice", source, asked, long)
	},
	"refresh for less": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		s.asks("alice", source, asked, long/2)
		return end
	},
	"refresh of what the kernel has lost": func(s *site, source string, asked time.Time) time.Time {
		s.asks("alice", source, asked, long/2)
		s.inKernel(source, 0)
		return s.asks("alice", source, asked, long)
	},
	"grant of what the kernel has already": func(s *site, source string, asked time.Time) time.Time {
		s.inKernel(source, 3*long)
		return s.asks("alice", source, asked, long)
	},
	"two holders": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		s.asks("bob", source, asked, long/2)
		return end
	},
	"one of two revoked": func(s *site, source string, asked time.Time) time.Time {
		s.asks("alice", source, asked, 2*long)
		end := s.asks("bob", source, asked, long)
		_, err := s.Revoke(s.Context(), Match{Client: "alice"}, asked)
		s.must(err)
		return end
	},
	"restart": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		s.die()
		s.open()
		s.must(s.gw.Do(func() error { return s.Load(s.Context(), 0, asked) }))
		return end
	},
	"start after a flush": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		s.die()
		if s.config.Mode == Guard {
			s.flushRuleset()
		}
		s.open()
		s.must(s.gw.Do(func() error { return s.Load(s.Context(), 0, asked) }))
		return end
	},
	"load again": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		s.must(s.gw.Do(func() error { return s.Load(s.Context(), 0, asked) }))
		return end
	},
	"put back": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		s.must(s.gw.Do(func() error { return s.putBack(asked) }))
		return end
	},
	"reconfigure": func(s *site, source string, asked time.Time) time.Time {
		end := s.asks("alice", source, asked, long)
		c := s.config
		c.Knock = nil
		s.must(s.gw.Do(func() error { return s.Reconfigure(s.Context(), c, asked) }))
		return end
	},
	"grant to a guard that has just gone": func(s *site, source string, asked time.Time) time.Time {
		if s.config.Mode == Guard {
			s.flushRuleset()
		}
		return s.asks("alice", source, asked, long)
	},
}

// asks grants a request that was made long ago.
func (s *site) asks(client, source string, asked time.Time, lasts time.Duration) (end time.Time) {
	s.Helper()
	g := sshGrant(client, source, 0)
	g.Until = asked.Add(lasts)
	s.must(s.gw.Do(func() error { return s.Grant(s.Context(), []Grant{g}, asked) }))
	return g.Until
}

// inKernel gives a source tcp/22 for some time, or takes it away, in the kernel alone.
func (s *site) inKernel(source string, lasts time.Duration) {
	s.Helper()
	e := guard.Element{Source: netip.MustParseAddr(source), Proto: service.TCP, Port: 22}
	s.must(s.backend.Set([]guard.Lease{{Element: e, Until: time.Now().Add(lasts)}}))
}

// TestKernelEndsGrantsWhenSaid: the kernel ends a grant on time, whatever way its end took into the kernel.
func TestKernelEndsGrantsWhenSaid(t *testing.T) {
	for name, way := range waysIn {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, k kind, f sides) {
				s := k.guarded(t, nil)
				s.kernelEnds(f.alice, way(s, f.alice, time.Now().Add(-10*time.Minute)), f.name)
			})
			t.Run("admit", func(t *testing.T) {
				for _, f := range bothFamilies {
					s := admitted(t)
					s.kernelEnds(f.alice, way(s, f.alice, time.Now().Add(-10*time.Minute)), f.name)
				}
			})
		})
	}
}

// TestClockIsAhead: a grant that a sleep prolonged in the kernel is ended when the clock is found to be ahead; grants
// that are not over end by the wall clock.
func TestClockIsAhead(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		ahead := make(chan time.Duration, 1)
		ahead <- 0
		s := k.guarded(t, func(c *Config) {
			c.Now = func() time.Time {
				d := <-ahead
				ahead <- d
				return lab.SetClock(t, time.Now(), d)
			}
		})
		stop := s.watchUntil()
		defer stop()
		s.grant("alice", f.alice, long)
		s.grant("bob", f.stranger, 3*long)
		end := time.Now().Add(3 * long)
		s.connect(f.alice, f.gateway, "22")
		<-ahead
		ahead <- 2 * time.Hour
		s.must(s.Firewall.ends.alarm.Set(0)) // as when the kernel reports that the clock was set
		lab.Eventually(t, "the end", func() bool { return !s.isOpen(f.alice, f.gateway, "22") })
		s.kernelEnds(f.stranger, end.Add(-2*time.Hour), "of a grant that lives on")
		s.connect(f.stranger, f.gateway, "22")
	})
}

// TestWatchEndsGrants: Watch ends grants whatever the kernel does, even a grant given while it waits for another.
func TestWatchEndsGrants(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.watch()
		s.grant("alice", "192.0.2.2", long)
		for range 2 {
			s.grant("bob", "192.0.2.3", 300*time.Millisecond)
			s.mu.Lock()
			s.inKernel("192.0.2.3", long) // as in a kernel that is late
			s.mu.Unlock()
			lab.Eventually(t, "bob's end", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
		}
		s.connect("192.0.2.2", "192.0.2.1", "22")
	})
}

// TestAlarm: the alarm goes by the wall clock, and goes off when that is set. The clock cannot be set here, so the
// test reads the alarm's settings from the kernel.
func TestAlarm(t *testing.T) {
	a := lab.Value(clock.OpenAlarm())(t)
	defer a.Close()
	lab.Must(t, a.Set(long))
	said := told(t, a)
	for _, want := range []string{"clockid: 0\n", "settime flags: 03\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("got %s, want %q in it", said, want)
		}
	}
}

// told returns the kernel's description of an alarm.
func told(t *testing.T, a *clock.Alarm) string {
	t.Helper()
	raw, err := a.File.SyscallConn()
	lab.Must(t, err)
	var said []byte
	raw.Control(func(fd uintptr) { said, err = os.ReadFile(filepath.Join("/proc/self/fdinfo", fmt.Sprint(fd))) })
	lab.Must(t, err)
	return string(said)
}
