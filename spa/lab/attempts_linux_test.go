package lab

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAttemptsSee: an open port is found open, a dark or closed one never. On a busy machine an attempt or two may get
// no answer in time.
func TestAttemptsSee(t *testing.T) {
	client, gateway := Pair(t)
	_, err := EchoServer(gateway, ":22")
	Must(t, err)
	for _, port := range []struct {
		name, to string
		open     bool
	}{
		{"open", "192.0.2.1:22", true},
		{"closed", "192.0.2.1:23", false},
		{"dark", "192.0.2.99:22", false},
	} {
		attempts := Attempt(t, client, "192.0.2.3", port.to)
		more(t, attempts, 50)
		outcome := Value(attempts.Stop())(t)
		if outcome.Made < 50 || (2*outcome.Through > outcome.Made) != port.open || (outcome.Through > 0) != port.open ||
			(outcome.Open > 0) != port.open {
			t.Errorf("%s: %v", port.name, outcome)
		}
	}
}

// TestAttemptsSeeWhen: a port that opens and shuts was open for part of the time.
func TestAttemptsSeeWhen(t *testing.T) {
	client, gateway := Pair(t)
	if _, err := Dial(client, "", "[2001:db8::1]:22", soon); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("got %v, want the hosts to have found each other", err)
	}
	begun := time.Now()
	attempts := Attempt(t, client, "2001:db8::2", "[2001:db8::1]:22")
	more(t, attempts, 20)
	echo := Value(EchoServer(gateway, ":22"))(t)
	more(t, attempts, 50)
	Must(t, echo.Close())
	more(t, attempts, 20)
	outcome := Value(attempts.Stop())(t)
	if all := time.Since(begun); outcome.Through == 0 || outcome.Through == outcome.Made || outcome.Open <= 0 ||
		outcome.Open >= all {
		t.Errorf("%v in %v, want it to be open for a part of that", outcome, all)
	}
}

// more waits until this many more attempts have been made.
func more(t *testing.T, a *Attempts, n int64) {
	t.Helper()
	n += a.count.Load()
	Eventually(t, "attempts", func() bool { return a.count.Load() >= n })
}

func TestOutcome(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	got := outcome([]attempt{{at(0), false}, {at(1), false}, {at(3), true}, {at(4), true}, {at(9), false},
		{at(10), false}, {at(11), true}})
	want := Outcome{Made: 7, Through: 3, Open: 9 * time.Millisecond, Longest: 5 * time.Millisecond}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
