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

// Watch keeps the guard in place until ctx ends, and returns ctx's error then. When
// another tool takes the guard away, or changes anything in our table, it is put back at
// once. It sleeps while nothing happens. See also ErrUnconfirmed and ErrTornDown.
func (f *Firewall) Watch(ctx context.Context) error {
	for {
		err := f.backend.watch(ctx, f.nextPoll())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = f.confirm(f.cfg.Now())
		case err == nil:
			err = f.putBack(f.cfg.Now())
		}
		if err != nil {
			return err
		}
	}
}

// nextPoll is zero where nothing has to be confirmed.
func (f *Firewall) nextPoll() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.guard.confirmBy.IsZero() {
		return time.Time{}
	}
	return f.cfg.Now().Add(confirmPoll)
}

// confirm makes the guard permanent once somebody has come in through a grant, or takes
// it away when the time for that is over.
func (f *Firewall) confirm(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.guard.confirmBy.IsZero() {
		return nil
	}
	// After the deadline the kernel may have let go of some ports: confirming late would
	// shut what is open by now.
	if !now.Before(f.guard.confirmBy) {
		return f.lapse()
	}
	ok, err := f.backend.confirmed()
	if errors.Is(err, errGone) || (err == nil && !ok) {
		return nil // if it is gone, watch says so next
	}
	if err != nil {
		return err
	}
	if err := f.backend.permanent(); err != nil {
		return err
	}
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
	err := f.restore(now)
	switch {
	case errors.Is(err, ErrTornDown):
		f.guard = state{}
		// A batch of ours may have crossed the one that tore it down.
		return errors.Join(ErrTornDown, f.backend.remove())
	case errors.Is(err, ErrUnconfirmed):
		return f.lapse()
	case errors.Is(err, ErrForeign):
		f.log.Error("the guard is not in place: another tool put a table of the same name there", "error", err)
		return nil
	case err != nil:
		return err
	}
	f.log.Warn("another tool changed our table; the guard was put back", "grants", len(f.held.byKey))
	return nil
}
