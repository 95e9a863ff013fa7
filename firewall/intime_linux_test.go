package firewall

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// inTime does what must be done within a time. If do reports that it came too late, inTime repeats everything with
// twice the time.
func inTime(t *testing.T, within time.Duration, do func(within time.Duration) bool) {
	t.Helper()
	for !do(within) {
		if within *= 2; within > lab.Patience {
			t.Fatal("it was too late each time")
		}
	}
}

// confirming makes a site whose guard is removed unless it is confirmed.
func confirming(t *testing.T, within time.Duration) *trial {
	return kinds()[0].confirming(t, within)
}

func (k kind) confirming(t *testing.T, within time.Duration) *trial {
	s := k.newSite(t, nil)
	s.open()
	return s.try(within)
}

// trial is a guard on trial.
type trial struct {
	*site
	until time.Time // the guard stays at least until then
}

// try loads the guard on trial.
func (s *site) try(within time.Duration) *trial {
	s.Helper()
	v := &trial{s, time.Now().Add(within)}
	s.load(within)
	return v
}

// stands reports whether a port is dark while the trial certainly lasts. If the trial may be over, the result proves
// nothing and the test must be repeated.
func (v *trial) stands(from, to, port string) bool {
	v.Helper()
	if !v.isOpen(from, to, port) {
		return true
	}
	if time.Now().Before(v.until) {
		v.Fatalf("%s connected to %s port %s while the guard is on trial", from, to, port)
	}
	return false
}

// gives reports whether a grant was given before the trial was over.
func (v *trial) gives(g Grant) bool {
	v.Helper()
	err := v.Grant(v.Context(), []Grant{g}, time.Now())
	if errors.Is(err, errNotLoaded) && !time.Now().Before(v.until) {
		return false
	}
	v.must(err)
	return true
}

// confirms reports whether Watch confirmed the guard. Otherwise it has removed the guard.
func (v *trial) confirms(ended <-chan error, n *atomic.Int32) bool {
	v.Helper()
	var err error
	lab.Eventually(v, "the confirmation", func() bool {
		select {
		case err = <-ended:
		default:
		}
		return err != nil || n.Load() == 1
	})
	if err != nil && !errors.Is(err, ErrUnconfirmed) {
		v.Fatalf("watch ended: %v", err)
	}
	return err == nil
}

// passes waits until the time of the trial has passed, while Watch keeps running.
func (v *trial) passes(ended <-chan error) {
	v.Helper()
	over := time.NewTimer(time.Until(v.until) + silence)
	defer over.Stop()
	select {
	case err := <-ended:
		v.Fatalf("watch ended: %v", err)
	case <-over.C:
	}
}
