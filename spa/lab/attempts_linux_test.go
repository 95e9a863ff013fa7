package lab

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAttemptsSee: a port that is open is seen to be open, a dark one and a closed one not.
func TestAttemptsSee(t *testing.T) {
	client, gateway := Pair(t)
	_, err := EchoServer(gateway, ":22")
	must(t, err)
	for _, port := range []struct {
		name, to string
		open     bool
	}{
		{"open", "192.0.2.1:22", true},
		{"closed", "192.0.2.1:23", false},
		{"dark", "192.0.2.99:22", false},
	} {
		attempts := Attempt(t, client, "192.0.2.3", port.to)
		pass(t, 50*time.Millisecond)
		outcome, err := attempts.Stop()
		must(t, err)
		if outcome.Made < 10 || (outcome.Through == outcome.Made) != port.open || (outcome.Open > 0) != port.open {
			t.Errorf("%s: %v", port.name, outcome)
		}
	}
}

// TestAttemptsSeeWhen: a port that opens and shuts was open for a part of the time.
func TestAttemptsSeeWhen(t *testing.T) {
	client, gateway := Pair(t)
	if _, err := Dial(client, "", "[2001:db8::1]:22", soon); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("got %v, want the hosts to have found each other", err)
	}
	attempts := Attempt(t, client, "2001:db8::2", "[2001:db8::1]:22")
	pass(t, 20*time.Millisecond)
	opened := time.Now()
	echo, err := EchoServer(gateway, ":22")
	must(t, err)
	pass(t, 50*time.Millisecond)
	must(t, echo.Close())
	shut := time.Now()
	pass(t, 20*time.Millisecond)
	outcome, err := attempts.Stop()
	must(t, err)
	if most := shut.Sub(opened) + 2*outcome.Longest; outcome.Through == 0 || outcome.Through == outcome.Made || outcome.Open > most {
		t.Errorf("%v, want some and %v at the most", outcome, most)
	}
}

// pass lets time pass in which something is to go on.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	begun := time.Now()
	Eventually(t, "time to pass", func() bool { return time.Since(begun) > d })
}

func TestOutcome(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	got := outcome([]attempt{{at(0), false}, {at(1), false}, {at(3), true}, {at(4), true}, {at(9), false}, {at(10), false}, {at(11), true}})
	want := Outcome{Made: 7, Through: 3, Open: 9 * time.Millisecond, Longest: 5 * time.Millisecond}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
