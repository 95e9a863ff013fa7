package firewall

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestCancelled: a request that its caller has cancelled is not carried out.
func TestCancelled(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, do := range map[string]func(k *kept) error{
		"grant": func(k *kept) error {
			return k.Grant(over, []Grant{portGrant("carol", k.now.Add(time.Hour), "tcp/24")}, k.now)
		},
		"revoke": func(k *kept) error {
			_, err := k.Revoke(over, Match{}, k.now)
			return err
		},
		"load":        func(k *kept) error { return k.Load(over, 0, k.now) },
		"reconfigure": func(k *kept) error { return k.Reconfigure(over, k.cfg, k.now) },
		"cut": func(k *kept) error {
			_, err := k.Cut(over, []Grant{portGrant("alice", k.now, "tcp/22")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := decided(t)
			k.kernel.told = func() { t.Error("the kernel was changed") }
			before, free := k.inMemory(), spare(k.ledger)
			if err := do(k); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want %v", err, context.Canceled)
			}
			k.kernel.told = nil
			k.unchanged(before, free)
		})
	}
}

// TestBeforeTheLoad: without a guard, nothing is held, granted or revoked.
func TestBeforeTheLoad(t *testing.T) {
	f, now := dry(t, 10), time.Now()
	if err := f.Grant(t.Context(), []Grant{portGrant("alice", now.Add(time.Hour), "tcp/22")},
		now); !errors.Is(err, errNotLoaded) {
		t.Errorf("grant: got %v, want %v", err, errNotLoaded)
	}
	if _, err := f.Revoke(t.Context(), Match{}, now); !errors.Is(err, errNotLoaded) {
		t.Errorf("revoke: got %v, want %v", err, errNotLoaded)
	}
	if err := f.Reconfigure(t.Context(), f.cfg, now); !errors.Is(err, errNotLoaded) {
		t.Errorf("reconfigure: got %v, want %v", err, errNotLoaded)
	}
	if gs := append(f.Grants(now), f.GrantsOf("alice", now)...); len(gs) != 0 {
		t.Errorf("got %v, want none", gs)
	}
	if f.endDue(now) || f.live(guard.Flow{Proto: service.TCP}) {
		t.Error("a grant is held")
	}
	if err := f.putBack(now); err != nil {
		t.Errorf("put back: %v", err)
	}
}

// TestGrantIsChecked: a grant must be complete, whatever the kernel would accept.
func TestGrantIsChecked(t *testing.T) {
	k := newKept(t)
	good := portGrant("alice", k.now.Add(time.Hour), "tcp/22")
	long := "a name of more than thirty-two by"
	for name, spoil := range map[string]func(*Grant){
		"no source": func(g *Grant) { g.Source = netip.Addr{} },
		"over":      func(g *Grant) { g.Until = k.now },
		"no ports":  func(g *Grant) { g.Ports, g.To = nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"no port":   func(g *Grant) { g.Ports = []service.Ports{{Proto: service.TCP}} },
		"nowhere":   func(g *Grant) { g.To = []netip.Addr{{}} },
		"two families": func(g *Grant) {
			g.To = []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8:1::5")}
		},
		"long client":  func(g *Grant) { g.Client = long },
		"long service": func(g *Grant) { g.Service = long },
	} {
		g := good
		spoil(&g)
		if err := k.Grant(t.Context(), []Grant{good, g}, k.now); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if len(k.inMemory())+len(k.onDisk())+len(k.inKernel()) != 0 {
		t.Error("a port was opened")
	}
}

// TestFullLedger: a request is granted completely or not at all.
func TestFullLedger(t *testing.T) {
	k := decided(t)
	before := k.inMemory()
	var many []Grant
	for port := range uint16(9) { // two of ten slots are taken
		g := portGrant("carol", k.now.Add(time.Hour))
		g.Ports = []service.Ports{{Proto: service.TCP, Low: 100 + port, High: 100 + port}}
		many = append(many, g)
	}
	k.kernel.told = func() { t.Error("the kernel was changed") }
	if err := k.Grant(t.Context(), many, k.now); !errors.Is(err, guard.ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
	k.kernel.told = nil
	k.unchanged(before, 8)
}

// TestRevokeMatches: Revoke selects by each property of a grant, and by all of them together.
func TestRevokeMatches(t *testing.T) {
	for name, test := range map[string]struct {
		match Match
		want  int
	}{
		"all":                   {Match{}, 2},
		"client":                {Match{Client: "alice"}, 1},
		"no such client":        {Match{Client: "nobody"}, 0},
		"service":               {Match{Services: []string{"other", "some"}}, 2},
		"no such service":       {Match{Services: []string{"other"}}, 0},
		"no services":           {Match{Services: []string{}}, 0},
		"address":               {Match{Source: portGrant("", time.Time{}).Source}, 2},
		"another address":       {Match{Source: portGrant("", time.Time{}).Source.Next()}, 0},
		"client, other service": {Match{Client: "alice", Services: []string{"other"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			k := decided(t)
			told := 0
			k.kernel.told = func() { told++ }
			gs, err := k.Revoke(t.Context(), test.match, k.now)
			if len(gs) != test.want || err != nil {
				t.Errorf("got %v, %v, want %d", gs, err, test.want)
			}
			if (told > 0) != (test.want > 0) {
				t.Errorf("the kernel was changed %d times", told)
			}
			k.agree("afterwards")
		})
	}
}

// TestRevokedInItsLastMoment: a grant whose time is over, but which may still be in the kernel.
func TestRevokedInItsLastMoment(t *testing.T) {
	k := newKept(t)
	lab.Must(t, k.Grant(t.Context(), []Grant{portGrant("alice", k.now.Add(time.Second), "tcp/22")}, k.now))
	k.passes(time.Second, 0)
	gs, err := k.Revoke(t.Context(), Match{Client: "alice"}, k.now)
	if len(gs) != 1 || err != nil {
		t.Errorf("got %v, %v, want one", gs, err)
	}
	if len(k.inMemory())+len(k.onDisk())+len(k.inKernel()) != 0 {
		t.Error("a grant is held")
	}
}

// TestRevokedLeavesNoEnd: a later grant has its own end, not that of a revoked one.
func TestRevokedLeavesNoEnd(t *testing.T) {
	k := decided(t)
	_, err := k.Revoke(t.Context(), Match{Client: "bob"}, k.now)
	lab.Must(t, err)
	lab.Must(t, k.Grant(t.Context(), []Grant{portGrant("carol", k.now.Add(time.Second), "tcp/22")}, k.now))
	k.agree("after a shorter grant")
	lab.Must(t, k.putBack(k.now))
	k.agree("after a put-back")
}

// TestGrantToldAlone: a new grant changes only its own elements in the kernel.
func TestGrantToldAlone(t *testing.T) {
	k := decided(t)
	for _, at := range []time.Duration{0, time.Second} {
		k.passes(at, 0)
		k.kernel.elements = 0
		lab.Must(t, k.Grant(t.Context(), []Grant{portGrant("carol", k.now.Add(time.Minute), "tcp/30-32")}, k.now))
		if k.kernel.elements != 3 {
			t.Errorf("%d elements were changed in the kernel, want 3", k.kernel.elements)
		}
	}
}

// TestGuardIsGone: another tool has just removed the guard. Revoked grants end, and a new grant is in the guard that
// is restored for it, or nowhere.
func TestGuardIsGone(t *testing.T) {
	gone := func(k *kept, load error) {
		k.kernel.fails = guard.ErrGone
		k.kernel.loads = func() error { k.kernel.fails = nil; return load }
	}
	t.Run("revoke", func(t *testing.T) {
		k := decided(t)
		gone(k, nil)
		if gs, err := k.Revoke(t.Context(), Match{}, k.now); len(gs) != 2 || err != nil {
			t.Errorf("got %v, %v, want both", gs, err)
		}
		if len(k.inMemory())+len(k.onDisk()) != 0 {
			t.Error("a grant is held")
		}
	})
	t.Run("end", func(t *testing.T) {
		k := decided(t)
		gone(k, nil)
		k.passes(time.Hour, 0)
		k.wakes()
		if k.held.Len() != 0 {
			t.Error("a grant is held")
		}
	})
	t.Run("grant", func(t *testing.T) {
		k := decided(t)
		gone(k, nil)
		lab.Must(t, decisions["grant"](k))
		k.agree("afterwards")
	})
	t.Run("grant that cannot be", func(t *testing.T) {
		k := decided(t)
		before, free := k.inMemory(), spare(k.ledger)
		gone(k, errFailing)
		if err := decisions["grant"](k); !errors.Is(err, errFailing) {
			t.Fatalf("got %v, want %v", err, errFailing)
		}
		k.unchanged(before, free)
	})
}

// alarmed returns a guard whose Watch can wake.
func alarmed(t *testing.T) *kept {
	k := newKept(t)
	a := lab.Value(clock.OpenAlarm())(t)
	k.Firewall.ends.alarm = a
	return k
}

// armed reports whether the alarm is set.
func (k *kept) armed() bool {
	k.Helper()
	return !strings.Contains(told(k.T, k.Firewall.ends.alarm), "it_value: (0, 0)")
}

// TestNobodyIsWoken: the alarm is not set if no grant will end.
func TestNobodyIsWoken(t *testing.T) {
	k := alarmed(t)
	said := &saying{Handler: slog.DiscardHandler}
	k.log = slog.New(said)
	armed := func(want bool, when string) {
		t.Helper()
		k.wakes()
		if got := k.armed(); got != want {
			t.Errorf("%s the alarm is set: %v, want %v", when, got, want)
		}
	}
	armed(false, "before the first grant")
	lab.Must(t, decisions["grant"](k))
	armed(true, "while it lives")
	if err := k.Firewall.ends.alarm.Set(-time.Second); err != nil { // it goes off
		t.Fatal(err)
	}
	lab.Must(t, k.Firewall.ends.alarm.Wait(t.Context()))
	k.passes(2*time.Hour, 0)
	armed(false, "after its end")
	if said.times("") != 0 {
		t.Errorf("it logged %v", said.lines)
	}
}

// TestWatchOfADryRun: Watch in a dry run has no alarm to wait for, and ends with its context.
func TestWatchOfADryRun(t *testing.T) {
	f, now := dry(t, 10), time.Now()
	lab.Must(t, f.Load(t.Context(), 0, now))
	ctx, cancel := context.WithTimeout(t.Context(), 5*endsApart)
	defer cancel()
	if err := f.Watch(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

// TestEndsAreSaid: Watch logs a clock that got ahead, once, and only if that ends grants; it logs that it cannot
// change the kernel; it does not log that it stops.
func TestEndsAreSaid(t *testing.T) {
	for name, test := range map[string]struct {
		granted bool
		fails   error
		want    [3]int // log lines: the clock is ahead, the kernel cannot be changed, there is no alarm
	}{
		"nothing held":  {false, nil, [3]int{0, 0, 0}},
		"held":          {true, nil, [3]int{1, 0, 0}},
		"guard is gone": {true, guard.ErrGone, [3]int{1, 0, 0}},
		"kernel fails":  {true, errFailing, [3]int{1, 1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			k := alarmed(t)
			said := &saying{Handler: slog.DiscardHandler}
			k.log = slog.New(said)
			if test.granted {
				lab.Must(t, decisions["grant"](k))
			}
			k.kernel.fails = test.fails
			k.passes(time.Second, 10*time.Minute)
			k.wakes()
			k.wakes()
			ctx, cancel := context.WithTimeout(t.Context(), 5*endsApart)
			defer cancel()
			k.kernel.fails = nil
			k.watchEnds(ctx)
			if got := [3]int{said.times("wall clock is ahead"), said.times("could not shorten"),
				said.times("no wall-clock alarm")}; got != test.want {
				t.Errorf("they were logged %v times, want %v", got, test.want)
			}
		})
	}
}

// saying is a log that keeps its lines.
type saying struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (s *saying) Enabled(context.Context, slog.Level) bool { return true }
func (s *saying) Handle(_ context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, r.Message)
	return nil
}

func (s *saying) times(words string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, line := range s.lines {
		if strings.Contains(line, words) {
			n++
		}
	}
	return n
}

// TestWokenForTheNextEnd: whatever happens in between, Watch wakes no later than the next grant ends, or soon again
// after a failure.
func TestWokenForTheNextEnd(t *testing.T) {
	c := newClocked(t)
	var err error
	c.ends.alarm, err = clock.OpenAlarm()
	lab.Must(t, err)
	wakesBy := func(what string, until time.Time) {
		t.Helper()
		if c.ends.at.IsZero() || c.ends.at.After(until) {
			t.Errorf("%s: it wakes at %v, want by %v", what, c.ends.at, until)
		}
	}
	c.grants("alice", 1, time.Hour)
	wakesBy("a grant", c.held.Next())
	c.grants("bob", 2, time.Minute)
	wakesBy("one that ends sooner", c.held.Next())
	c.grants("carol", 3, 2*time.Hour)
	wakesBy("one that ends later", c.held.Next())
	c.passes(time.Minute, 0)
	c.wakes()
	wakesBy("the first has ended", c.held.Next())
	c.passes(time.Minute, 30*time.Minute)
	if _, err := c.Revoke(t.Context(), Match{Client: "nobody"}, c.now); err != nil {
		t.Fatal(err)
	}
	wakesBy("the clock has run on", c.held.Next())
	c.passes(time.Hour, 0)
	c.kernel.fails = errFailing
	c.wakes()
	wakesBy("the end has failed", c.now.Add(putBackAgain))
	c.kernel.fails = nil
	c.wakes()
	wakesBy("two have ended", c.held.Next())
	if gs := c.Grants(c.now); len(gs) != 1 || gs[0].Client != "carol" {
		t.Errorf("got %v, want carol's", gs)
	}
}

// TestAlarmThatFails: grants are given without an alarm, and the log reports that only the kernel ends them.
func TestAlarmThatFails(t *testing.T) {
	k := alarmed(t)
	said := &saying{Handler: slog.DiscardHandler}
	k.log = slog.New(said)
	lab.Must(t, k.Firewall.ends.alarm.Close())
	lab.Must(t, decisions["grant"](k))
	k.agree("afterwards")
	k.watchEnds(t.Context())
	if n := said.times("no wall-clock alarm"); n != 2 {
		t.Errorf("it was logged %d times, want by the grant and by Watch", n)
	}
}
