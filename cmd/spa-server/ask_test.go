package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestOffset: offset describes clocks in words.
func TestOffset(t *testing.T) {
	for ahead, want := range map[float64]string{0: "right", -0.04: "right", 0.06: "0.1 s ahead",
		-43.2: "43 s behind", 3600: "3600 s ahead"} {
		if got := offset(ahead); got != want {
			t.Errorf("%v: got %q, want %q", ahead, got, want)
		}
	}
}

// TestDecisionLine: a line reads as a sentence.
func TestDecisionLine(t *testing.T) {
	at := time.Date(2026, 3, 1, 14, 3, 30, 0, time.Local)
	for want, d := range map[string]control.Decision{
		"14:03:30 unopened 12 ×: wrong gate tag": {Verdict: "unopened", Packets: 12,
			Reason: "wrong gate tag"},
		"14:03:30 unopened bob: stale packet, clock 43 s behind": {Verdict: "unopened", Client: "bob",
			Reason: "stale packet", Ahead: -43},
		"14:03:30 granted alice ssh,web until 14:04:00": {Verdict: "granted", Client: "alice",
			Services: []string{"ssh", "web"}, Until: []time.Time{at.Add(30 * time.Second)}},
		"14:03:30 denied bob close ssh: not allowed": {Verdict: "denied", Client: "bob", Command: "close",
			Services: []string{"ssh"}, Reason: "not allowed"},
		"14:03:30 closed alice ssh: made with the old gate key": {Verdict: "closed", Client: "alice", Command: "close",
			Services: []string{"ssh"}, OldGate: true},
		"14:03:30 granted alice ssh: made with the client's old key": {Verdict: "granted", Client: "alice",
			Services: []string{"ssh"}, OldKey: true},
	} {
		d.Time = at
		if got := decisionLine(d); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestMissed: missed decisions are reported.
func TestMissed(t *testing.T) {
	for asJSON, want := range map[bool]string{false: "3 decisions were not shown\n", true: "{\"missed\":3}\n"} {
		var out strings.Builder
		cmd := newWatch(new(string))
		cmd.SetOut(&out)
		if err := printDecision(cmd, control.Reply{Missed: 3}, asJSON); err != nil || out.String() != want {
			t.Errorf("got %q (%v), want %q", out.String(), err, want)
		}
	}
}

// TestStatusOfMany: clients that need attention are listed, among however many.
func TestStatusOfMany(t *testing.T) {
	s := &control.Status{Now: time.Now(), MoreSeen: 5}
	for i := range 100 {
		s.Seen = append(s.Seen, control.Seen{Client: fmt.Sprintf("c%d", i), Last: s.Now})
	}
	s.Seen = append(s.Seen, control.Seen{Client: "bob", Last: s.Now, OldKey: true}, control.Seen{Client: "carol",
		Last: s.Now, Ahead: -20},
		control.Seen{Client: "dave", Stale: &control.Stale{Packets: 3, Ahead: 43}}, control.Seen{Client: "erin",
			Last: s.Now, OldGate: true})
	var out strings.Builder
	lab.Must(t, printStatus(&out, s))
	wantSaid(t, out.String(), "bob: ", "uses its old key", "carol: clock 20 s behind",
		"dave: 43 s ahead: 3 refused as stale", "erin: ", "uses the old gate key", "and 85 more")
	if n := strings.Count(out.String(), "clock right"); n != 22 {
		t.Errorf("%d clients without a problem are listed, want 20 and two with old keys\n%s", n, out.String())
	}
}
