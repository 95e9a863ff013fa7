package client

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/spa"
)

// round is what a test expects of a Round, and when.
type round struct {
	at    time.Duration
	cause Cause
	next  time.Duration
}

// keepFor keeps ssh open for a while and returns the rounds.
func keepFor(t *testing.T, g *gateway, n *fakeNet, c Command, d time.Duration) []round {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	start := time.Now()
	var rounds []round
	for r := range keep(ctx, g.profile, c, n) {
		rounds = append(rounds, round{time.Since(start), r.Cause, r.Next})
	}
	return rounds
}

func wantRounds(t *testing.T, got, want []round) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if d := got[i].next - want[i].next; got[i].at != want[i].at || got[i].cause != want[i].cause ||
			d.Abs() > time.Millisecond {
			t.Errorf("round %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

// A grant of 30 s is renewed after 20, each time by a request of its own.
func TestKeepRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		got := keepFor(t, g, n, open(), 50*time.Second)
		wantRounds(t, got, []round{{0, First, 20 * time.Second}, {20 * time.Second, Due, 20 * time.Second},
			{40 * time.Second, Due, 20 * time.Second}})
		knocks, _, _ := g.seen()
		if len(knocks) != 3 || knocks[0].ID == knocks[1].ID || knocks[1].ID == knocks[2].ID {
			t.Errorf("got %d packets, want three requests", len(knocks))
		}
	})
}

// It backs off after failures, and returns to its pace after a success.
func TestKeepBacksOff(t *testing.T) {
	for name, status := range map[string]spa.Status{"no answer": 0, "too many for now": spa.ReasonTooManyPerHour,
		"not now":       spa.ReasonNotNow,
		"too many open": spa.ReasonTooManyGrants, "too many ports": spa.ReasonTooManyPorts,
		"the firewall failed": spa.ReasonFailed} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				start := time.Now()
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status {
					if s := time.Since(start); s >= 20*time.Second && s < 30*time.Second {
						return status
					}
					return spa.Granted
				}
				c := open()
				c.Timeout = time.Second
				var pauses []time.Duration
				var causes []Cause
				for _, r := range keepFor(t, g, n, c, time.Minute) {
					pauses, causes = append(pauses, r.next), append(causes, r.cause)
				}
				if !slices.Equal(causes[:4], []Cause{First, Due, Again, Again}) {
					t.Errorf("got causes %v", causes)
				}
				want := []time.Duration{20 * time.Second, time.Second, 2 * time.Second, 4 * time.Second}
				for i, w := range want {
					if i >= len(pauses) || (pauses[i]-w).Abs() > time.Millisecond {
						t.Fatalf("got pauses %v, want them to begin with %v", pauses, want)
					}
				}
				if last := pauses[len(pauses)-1]; last != 20*time.Second {
					t.Errorf("got %v at last, want the usual pause", last)
				}
			})
		})
	}
}

func TestKeepPauseIsBounded(t *testing.T) {
	r := &Round{Err: ErrNoAnswer}
	for failures := 1; failures < 100; failures++ {
		if p := r.pause(open(), failures); p < firstPause || p > lastPause {
			t.Fatalf("after %d failures: %v", failures, p)
		}
	}
	short := &Round{Answers: []Answer{{Verdict: Opened,
		Receipt: &spa.Receipt{Services: []spa.Granting{{For: time.Millisecond}}}}}}
	if p := short.pause(open(), 0); p != leastPause {
		t.Errorf("a grant of a millisecond: %v", p)
	}
	blind := &Round{Answers: []Answer{{Verdict: Opened}}}
	if p := blind.pause(open(), 0); p != 20*time.Second {
		t.Errorf("without a receipt: %v", p)
	}
	if p := blind.pause(Command{For: time.Hour}, 0); p != 40*time.Minute {
		t.Errorf("without a receipt, for an hour: %v", p)
	}
	two := &Round{Answers: []Answer{{Verdict: Refused, Receipt: &spa.Receipt{}},
		{Verdict: Opened, Receipt: &spa.Receipt{Services: []spa.Granting{{For: time.Hour}, {For: time.Minute}}}}}}
	if p := two.pause(open(), 0); p != 40*time.Second {
		t.Errorf("the shortest of two: %v", p)
	}
}

// A refusal that waiting does not change ends it, and so does a command that fits no packet.
func TestKeepEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		start := time.Now()
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status {
			if time.Since(start) > 10*time.Second {
				return spa.ReasonExpired
			}
			return spa.Granted
		}
		got := keepFor(t, g, n, open(), time.Hour)
		wantRounds(t, got, []round{{0, First, 20 * time.Second}, {20 * time.Second, Due, 0}})
		got = keepFor(t, g, n, Command{}, time.Hour)
		wantRounds(t, got, []round{{0, First, 0}})
	})
}

// When this machine's address changes it knocks at once. A change that keeps the address, and the loss of one, do not
// count.
func TestKeepFollowsTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		n.changes = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), 35*time.Second)
		defer cancel()
		go func() {
			for _, route := range []map[netip.Addr]netip.Addr{{gate4: private}, {}, {gate4: public4}} {
				<-time.After(3 * time.Second)
				n.move(route)
			}
		}()
		start := time.Now()
		var got []round
		for r := range keep(ctx, g.profile, open(), n) {
			got = append(got, round{time.Since(start), r.Cause, r.Next})
		}
		moved := 9*time.Second + settleAfter
		wantRounds(t, got, []round{{0, First, 20 * time.Second}, {moved, Moved, 20 * time.Second},
			{moved + 20*time.Second, Due, 20 * time.Second}})
		if knocks, _, _ := g.seen(); knocks[1].Source != public4 {
			t.Errorf("the second request states %v, want the new address", knocks[1].Source)
		}
	})
}

// A machine without a network knocks as soon as it has one.
func TestKeepFindsANetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		n.changes = make(chan struct{})
		n.route = nil
		go func() {
			<-time.After(500 * time.Millisecond)
			n.move(map[netip.Addr]netip.Addr{gate4: private})
		}()
		got := keepFor(t, g, n, open(), 10*time.Second)
		wantRounds(t, got, []round{{0, First, firstPause}, {500*time.Millisecond + settleAfter, Moved, 20 * time.Second}})
	})
}

// If changes are polled, a machine that stays without a network or a resolver retries ever more rarely too, and does
// not report that it has moved.
func TestKeepWithoutNetworkBacksOff(t *testing.T) {
	for name, lose := range map[string]func(*gateway, *fakeNet){
		"no network":  func(_ *gateway, n *fakeNet) { n.route = nil },
		"no resolver": func(g *gateway, n *fakeNet) { g.profile.Address = "gw.example.net" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				changes, stop := polled()
				defer stop()
				n.polled = changes
				lose(g, n)
				var causes []Cause
				for _, r := range keepFor(t, g, n, open(), 5*time.Minute) {
					causes = append(causes, r.cause)
				}
				if len(causes) > 16 || slices.Contains(causes, Moved) { // 1, 2, 4, 8, 16 and then every 30 s
					t.Errorf("got %d rounds in five minutes: %v", len(causes), causes)
				}
			})
		})
	}
}

// After the loop is left there are no more knocks.
func TestKeepIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		for r := range keep(t.Context(), g.profile, open(), n) {
			if r.Err != nil {
				t.Errorf("got %v", r.Err)
			}
			break
		}
		<-time.After(time.Minute)
		if knocks, _, _ := g.seen(); len(knocks) != 1 {
			t.Errorf("got %d packets", len(knocks))
		}
	})
}

func TestPolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes, stop := polled()
		start := time.Now()
		<-changes
		<-changes
		if waited := time.Since(start); waited != 2*lookAgain {
			t.Errorf("waited %v for two looks", waited)
		}
		stop() // with no one to receive the next
	})
}
