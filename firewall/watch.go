package firewall

import (
	"cmp"
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
)

// confirmPoll is how often Watch checks for a new flow through a grant while a confirmation is outstanding.
const confirmPoll = 200 * time.Millisecond

// putBackAgain is how long Watch waits after a failed attempt to put the guard back.
const putBackAgain = 100 * time.Millisecond

// sayAgain is the least time between two log lines about put-backs.
const sayAgain = 10 * time.Second

// Watch keeps the guard in place until ctx ends, and returns ctx's error then. When another tool removes the guard or
// changes anything in our table, Watch puts it back at once; if the tool keeps doing so, put-backs slow down to one a
// second. Watch also ends each grant on time where the kernel would be late: where it counts whole seconds, and after
// the machine slept or was paused. It sleeps while nothing happens. See also ErrUnconfirmed and ErrTornDown.
func (f *Firewall) Watch(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	var wait sync.WaitGroup
	wait.Go(func() { f.watchEnds(ctx) })
	wait.Go(func() { f.watchKeeper(ctx) })
	defer wait.Wait()
	defer cancel()
	var p pace
	for {
		err := f.backend.Watch(ctx, f.nextLook())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = f.look(f.cfg.Now())
		case err == nil:
			if !rest(ctx, p.next(time.Now())) {
				return ctx.Err()
			}
			err = f.putBack(f.cfg.Now())
			p.last = time.Now()
		}
		if err != nil {
			return err
		}
	}
}

// pace spaces out put-backs. The first happens at once; if another tool undoes each one, they slow down to one every
// slowest.
type pace struct {
	last  time.Time // when the guard was put back
	pause time.Duration
}

const (
	slowest = time.Second
	// follows is how soon after a put-back a change counts as another tool's reaction to it.
	follows = 100 * time.Millisecond
)

// next returns how long to wait after a change that was reported at now.
func (p *pace) next(now time.Time) time.Duration {
	if now.Sub(p.last) > follows {
		p.pause = 0
		return 0
	}
	p.pause = min(max(2*p.pause, time.Millisecond), slowest)
	return p.pause
}

// rest waits for d and returns true, or false if ctx ends first.
func rest(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// nextLook returns when Watch must check even if nothing was reported; zero: never.
func (f *Firewall) nextLook() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.state.missing:
		return time.Now().Add(putBackAgain)
	case !f.state.confirmBy.IsZero():
		return time.Now().Add(confirmPoll)
	case f.unsaid > 0:
		return f.said.Add(sayAgain)
	}
	return time.Time{}
}

func (f *Firewall) look(now time.Time) error {
	f.mu.Lock()
	missing := f.state.missing
	f.sayPutBack()
	f.mu.Unlock()
	if missing {
		return f.putBack(now)
	}
	return f.confirm(now)
}

// confirm makes the guard permanent once a new flow has come in through a grant, or removes it when the time for that
// is over.
func (f *Firewall) confirm(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.confirmBy.IsZero() {
		return nil
	}
	return f.ledger.Alone(func() error {
		if f.entered() {
			return f.stay()
		}
		if guard.Remaining(f.state.confirmBy, now) > 0 {
			return nil
		}
		return f.endTrial()
	})
}

// stay makes the guard permanent. If that fails, for instance because another tool has just removed the guard, Watch
// loads a permanent one.
func (f *Firewall) stay() error {
	if err := f.backend.Permanent(); err != nil {
		f.state.missing = true
		f.log.Error("could not make the guard permanent; loading it again", "error", err)
	}
	return f.setConfirmed()
}

// entered reports whether a new flow has come through a grant. The counters stop once the kernel opens the ports, so
// a late check sees what one in time would. An error means that the table has just gone.
func (f *Firewall) entered() bool {
	ok, err := f.backend.Entered()
	if f.cfg.ConfirmBy != "" {
		return f.enteredByOne(ok && err == nil)
	}
	return ok && err == nil
}

func (f *Firewall) setConfirmed() error {
	f.state.confirmBy = time.Time{}
	f.state.earlier = nil
	f.log.Info("the guard is confirmed: a new connection came in through a grant", "client",
		cmp.Or(f.cfg.ConfirmBy, "any"))
	return f.ledger.SetPhase(ledger.LoadAgain)
}

func (f *Firewall) endTrial() error {
	f.state = state{}
	return errors.Join(ErrUnconfirmed, f.backend.Remove())
}

// putBack restores what another tool has changed.
func (f *Firewall) putBack(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.loaded {
		return nil
	}
	f.adjust(now)
	return f.ledger.Alone(func() error { return f.putBackAlone(now) })
}

func (f *Firewall) putBackAlone(now time.Time) error {
	if !f.state.confirmBy.IsZero() && f.entered() { // the counters are about to be lost
		if err := f.setConfirmed(); err != nil {
			return err
		}
	}
	err := f.restore(now)
	switch {
	case errors.Is(err, ErrTornDown):
		f.state = state{}
		return errors.Join(err, f.backend.Remove()) // Teardown cannot remove a table that only we can change
	case errors.Is(err, ErrUnconfirmed):
		return f.endTrial()
	case err != nil && f.state.missing:
		return nil // already logged
	case err != nil:
		f.state.missing = true
		f.log.Error("another tool changed our table, and the guard could not be put back: guarded ports may be OPEN",
			"error", err)
		return nil
	}
	f.state.missing = false
	f.back++
	f.unsaid++
	f.sayPutBack()
	return nil
}

// sayPutBack logs how often the guard was put back: the first time at once, then at most once every sayAgain. The
// caller holds the lock.
func (f *Firewall) sayPutBack() {
	if f.unsaid == 0 || time.Since(f.said) < sayAgain {
		return
	}
	f.log.Warn("another tool changed our table: the guard was put back", "times", f.unsaid, "grants", f.held.Len())
	f.unsaid, f.said = 0, time.Now()
}
