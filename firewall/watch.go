package firewall

import (
	"context"
	"errors"
	"os"
	"time"
)

// confirmPoll is how often Watch asks whether a new flow has come through a grant. It asks
// only while a confirmation is outstanding.
const confirmPoll = 200 * time.Millisecond

// putBackAgain is how long Watch waits where putting the guard back failed.
const putBackAgain = 100 * time.Millisecond

// Watch keeps the guard in place until ctx ends, and returns ctx's error then. When
// another tool takes the guard away, or changes anything in our table, it is put back at
// once. It sleeps while nothing happens. See also ErrUnconfirmed and ErrTornDown.
func (f *Firewall) Watch(ctx context.Context) error {
	for {
		err := f.backend.watch(ctx, f.nextLook())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = f.look(f.cfg.Now())
		case err == nil:
			err = f.putBack(f.cfg.Now())
		}
		if err != nil {
			return err
		}
	}
}

// nextLook is when Watch has to look though nothing was heard; zero: never.
func (f *Firewall) nextLook() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.guard.missing:
		return time.Now().Add(putBackAgain)
	case !f.guard.confirmBy.IsZero():
		return time.Now().Add(confirmPoll)
	}
	return time.Time{}
}

func (f *Firewall) look(now time.Time) error {
	f.mu.Lock()
	missing := f.guard.missing
	f.mu.Unlock()
	if missing {
		return f.putBack(now)
	}
	return f.confirm(now)
}

// confirm makes the guard permanent once somebody has come in through a grant, or takes
// it away when the time for that is over.
func (f *Firewall) confirm(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.guard.confirmBy.IsZero() {
		return nil
	}
	if !f.entered() {
		if now.Before(f.guard.confirmBy) {
			return nil
		}
		return f.lapse()
	}
	if err := f.backend.permanent(); err != nil {
		return err
	}
	return f.confirmed()
}

// entered reports whether a new flow has come through a grant. The counters stand still
// once the kernel lets go of the ports, so a look that comes late sees the same as one in
// time. An error is what a table gives that has just gone.
func (f *Firewall) entered() bool {
	ok, err := f.backend.confirmed()
	return ok && err == nil
}

func (f *Firewall) confirmed() error {
	f.guard.confirmBy = time.Time{}
	f.log.Info("the guard is confirmed: a new connection came through a grant")
	return f.ledger.setMark(loadAgain)
}

func (f *Firewall) lapse() error {
	f.guard = state{}
	return errors.Join(ErrUnconfirmed, f.backend.remove())
}

// putBack restores what another tool has changed.
func (f *Firewall) putBack(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.guard.loaded {
		return nil
	}
	f.held.expire(now)
	if !f.guard.confirmBy.IsZero() && f.entered() { // the counters are about to be lost
		if err := f.confirmed(); err != nil {
			return err
		}
	}
	err := f.restore(now)
	switch {
	case errors.Is(err, ErrTornDown):
		f.guard = state{}
		// A batch of ours may have crossed the one that tore it down.
		return errors.Join(ErrTornDown, f.backend.remove())
	case errors.Is(err, ErrUnconfirmed):
		return f.lapse()
	case err != nil && f.guard.missing:
		return nil // it was said
	case err != nil:
		f.guard.missing = true
		f.log.Error("another tool changed our table, and the guard could not be put back; guarded ports may be open", "error", err)
		return nil
	}
	f.guard.missing = false
	f.log.Warn("another tool changed our table; the guard was put back", "grants", len(f.held.byKey))
	return nil
}
