package firewall

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// inTime does what has to be done within a time. Where do reports that it came too late it is
// done again, in all, with twice the time.
func inTime(t *testing.T, within time.Duration, do func(within time.Duration) bool) {
	t.Helper()
	for !do(within) {
		if within *= 2; within > lab.Patience {
			t.Fatal("each time it was too late")
		}
	}
}

// confirming makes a site whose guard lapses unless it is confirmed.
func confirming(t *testing.T, within time.Duration) *trial {
	return kinds()[0].confirming(t, within)
}

func (k kind) confirming(t *testing.T, within time.Duration) *trial {
	s := k.newSite(t, nil)
	s.open()
	return s.try(within)
}

// trial is a guard that lapses.
type trial struct {
	*site
	until time.Time // before then it does not
}

// try loads the guard on trial.
func (s *site) try(within time.Duration) *trial {
	s.Helper()
	v := &trial{s, time.Now().Add(within)}
	s.load(within)
	return v
}

// stands reports whether a port is dark, as long as the trial lasts for sure. Where it may be
// over that says nothing, and what is tested has to be done again.
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

// confirms reports whether Watch confirmed the guard. Otherwise it has taken it away.
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

// passes waits until the time for the trial is over, through which Watch goes on.
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
