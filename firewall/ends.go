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

// ends is what is known of the clocks, and what wakes Watch at the end of the next grant.
//
// The kernel ends grants by itself, but later than was said where its unit is a second, and
// by as long as its clock stood still while the machine slept or was paused. So whoever is
// there ends them, too, by the wall clock, which goes on or is put right afterwards.
type ends struct {
	alarm *clock.Alarm // nil in a dry run
	at    time.Time    // when it goes off; zero: not at all
	seen  time.Time    // when both clocks were last compared
}

// clockStep is how far the wall clock has to get ahead of the monotonic one for that not to
// be the time between reading the two.
const clockStep = 100 * time.Millisecond

// endsApart is the least time between two looks at what has ended: ends that come close
// together cost the kernel one batch.
const endsApart = 10 * time.Millisecond

// adjust lets grants end by the wall clock where that has got ahead of the monotonic one:
// the machine slept or was paused, or the clock was set. One that was set back prolongs
// nothing. The caller holds the lock.
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
	f.log.Info("the wall clock got ahead of the kernel's timeouts, as after a suspend: grants end by the wall clock",
		"by", ahead)
	if err := f.backend.Set(leasesOf(ends)); err != nil && !errors.Is(err, guard.ErrGone) {
		f.log.Error("the kernel could not be told that grants end earlier: they will be removed when they end", "error", err)
	}
	f.wakeForNext(now)
}

// endAtOnce is how many ports are ended before somebody else has a turn.
const endAtOnce = 500

// endOver ends what is over at now, or some of it where that is much, and reports whether
// there was any. What the kernel or the ledger cannot be told stays where Revoke finds it. The caller
// holds the lock.
func (f *Firewall) endOver(now time.Time) (some bool, err error) {
	f.adjust(now)
	over := f.held.Over(now, endAtOnce)
	if len(over) == 0 {
		return false, nil
	}
	ends := f.held.EndsWithout(over)
	maps.DeleteFunc(ends, func(_ guard.Element, end time.Time) bool { return !end.IsZero() }) // another one goes on
	if err := f.backend.Set(leasesOf(ends)); err != nil && !errors.Is(err, guard.ErrGone) {
		return true, err
	}
	if err := f.forget(over); err != nil { // if the clock is set back, a restart must not bring them back
		return true, err
	}
	for _, h := range over {
		f.held.Remove(h)
	}
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
	if err := f.ends.alarm.Set(guard.Left(at, now)); err != nil {
		f.log.Error("no alarm for the wall clock: grants end by the kernel's timeouts alone, later after a suspend", "error",
			err)
	}
}

// watchEnds ends each grant at its end until ctx does. It sleeps while there is none.
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
			f.log.Error("no alarm for the wall clock: grants end by the kernel's timeouts alone, later after a suspend",
				"error", err)
			return
		}
		for f.endDue(f.cfg.Now()) {
			runtime.Gosched()
		}
	}
}

// endDue ends what is over, and sees to what ends next. It reports whether there is more.
func (f *Firewall) endDue(now time.Time) (more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends.at = time.Time{}
	if !f.guard.loaded {
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
