package firewall

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/firewall/internal/guard"
)

// ends compares the clocks and wakes Watch when the next grant ends.
//
// The kernel ends grants itself, but late where it counts whole seconds, and late by as long as its clock stood still
// while the machine slept or was paused. So a running daemon also ends them by the wall clock.
type ends struct {
	alarm *clock.Alarm // nil in a dry run
	at    time.Time    // when it goes off; zero: not at all
	seen  time.Time    // when the two clocks were last compared
}

// clockStep is how far the wall clock must get ahead of the monotonic one before the difference counts: reading the
// two takes time as well.
const clockStep = 100 * time.Millisecond

// endsApart is the least time between two checks for grants that have ended, so that ends close together cost the
// kernel one batch.
const endsApart = 10 * time.Millisecond

// adjust makes grants end by the wall clock if that got ahead of the monotonic clock: the machine slept or was
// paused, or the clock was set. Setting the clock back prolongs nothing. The caller holds the lock.
func (f *Firewall) adjust(now time.Time) {
	seen := f.ends.seen
	f.ends.seen = now
	ahead := now.Round(0).Sub(seen.Round(0)) - now.Sub(seen)
	if ahead < clockStep {
		return
	}
	ends := f.held.Adjust(now)
	if len(ends) == 0 {
		return
	}
	f.log.Info("the wall clock is ahead of the kernel's timeouts, as after a suspend: grants now end by the wall clock",
		"by", ahead)
	if err := f.backend.Set(leasesOf(ends)); err != nil && !errors.Is(err, guard.ErrGone) {
		f.log.Error("could not shorten grants in the kernel: they will be removed when they end", "error", err)
	}
	f.wakeForNext(now)
}

// endAtOnce is how many ports are ended before the lock is released for other callers.
const endAtOnce = 500

// endOver ends grants that are over at now, at most endAtOnce ports of them, and reports whether there were any. If the
// kernel or the ledger cannot be changed they stay in the book, so that Revoke still finds them. The caller holds the
// lock.
func (f *Firewall) endOver(now time.Time) (some bool, err error) {
	f.adjust(now)
	over := f.held.Over(now, endAtOnce)
	if len(over) == 0 {
		return false, nil
	}
	ends := f.held.EndsWithout(over)
	maps.DeleteFunc(ends, func(_ guard.Element, end time.Time) bool { return !end.IsZero() }) // held by another grant
	if err := f.backend.Set(leasesOf(ends)); err != nil && !errors.Is(err, guard.ErrGone) {
		return true, err
	}
	if err := f.erase(over); err != nil { // if the clock is set back, a restart must not restore them
		return true, err
	}
	for _, h := range over {
		f.held.Remove(h)
	}
	f.left()
	return true, nil
}

// wakeForNext makes Watch wake when the next grant ends. The caller holds the lock.
func (f *Firewall) wakeForNext(now time.Time) {
	next := f.held.Next()
	if next.IsZero() || !f.ends.at.IsZero() && !next.Before(f.ends.at) {
		return
	}
	f.wakeAt(next, now)
}

func (f *Firewall) wakeAt(at, now time.Time) {
	if f.ends.alarm == nil {
		return
	}
	f.ends.at = at
	if err := f.ends.alarm.Set(guard.Remaining(at, now)); err != nil {
		f.log.Error("no wall-clock alarm: grants end only by the kernel's timeouts, which a suspend delays", "error",
			err)
	}
}

// watchEnds ends each grant on time until ctx ends. It sleeps while there are none.
func (f *Firewall) watchEnds(ctx context.Context) {
	if f.ends.alarm == nil {
		return
	}
	for rest(ctx, endsApart) {
		err := f.ends.alarm.Wait(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.log.Error("no wall-clock alarm: grants end only by the kernel's timeouts, which a suspend delays",
				"error", err)
			return
		}
		for f.endDue(f.cfg.Now()) {
			runtime.Gosched()
		}
	}
}

// endDue ends the grants that are over or, if there are none, sets the alarm for the next. It reports whether to call
// it again.
func (f *Firewall) endDue(now time.Time) (more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends.at = time.Time{}
	if !f.state.loaded {
		return false
	}
	some, err := f.endOver(now)
	switch {
	case err != nil:
		f.wakeAt(now.Add(putBackAgain), now)
		return false
	case some:
		return true
	}
	f.wakeForNext(now)
	return false
}
