package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/statefile"
	"sallyport/keys/service"
)

// How long an existing flow has to send a packet after the first load; then it is marked and stays. A TCP session may
// be silent overnight, and the carried element admits only packets without SYN between two addresses and ports, which
// cannot open a connection except by a SYN cookie. A datagram can begin a flow, and ports whose sessions end with the
// grant must not stay open, so those are carried for a short time.
const (
	carryFor    = 10 * time.Minute
	carryTCPFor = 12 * time.Hour
)

// Load puts the guard and the live grants into the kernel in one batch. If no rule of ours enables connection
// tracking yet, a simpler guard goes first. A guard that is already there is replaced; guarded ports stay shut
// throughout. If a table of our name is not ours, Load returns ErrForeign.
//
// If confirm is above zero, the kernel removes the guard after that time, even if this process has ended, unless
// Watch sees a new flow through a grant first.
//
// Of the grants in the ledger it keeps what Reconfigure would keep if the settings had changed while this process ran.
//
// In a dry run, Load ends the grants of earlier runs, which a dry run could not revoke. It leaves their guard in
// place, which then admits nobody. If that fails, so does Load.
//
// A first load also carries the existing flows to guarded ports. A load is a first load after ForceFirstLoad, Teardown
// or an unconfirmed run, and with a new ledger.
func (f *Firewall) Load(ctx context.Context, confirm time.Duration, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if confirm > 0 && f.cfg.Mode == Admit {
		return errors.New("mode admit shuts nothing, so there is nothing to confirm; start without --confirm")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.readLedger(now); err != nil {
		return err
	}
	if err := f.ledger.Alone(func() error { return f.load(confirm, now) }); err != nil {
		return err
	}
	f.wakeForNext(now)
	return f.sweep(now)
}

// load is Load for a caller that holds the lock and the ledger's lock.
func (f *Firewall) load(confirm time.Duration, now time.Time) error {
	next := state{loaded: true}
	if confirm > 0 {
		next.confirmBy = now.Add(confirm)
	}
	if err := f.carry(&next, now); err != nil {
		return err
	}
	if confirm > 0 && f.cfg.ConfirmBy != "" {
		var err error
		if next.earlier, err = f.recent(); err != nil {
			return fmt.Errorf("listing the sessions from before the trial: %w", err)
		}
	}
	p := guard.Plan{
		Leases:    f.held.Leases(),
		Spend:     true,
		ConfirmBy: next.confirmBy,
		Carried:   next.carried,
	}
	// If the daemon ends between the two, the next load must not take this one for confirmed.
	if confirm > 0 {
		if err := f.ledger.SetPhase(ledger.LoadFirst); err != nil {
			return err
		}
	}
	if err := f.put(p); err != nil {
		return err
	}
	f.state = next
	if confirm > 0 {
		return nil
	}
	return f.ledger.SetPhase(ledger.LoadAgain)
}

// readLedger reads the grants from the ledger, once. The files may have changed while no daemon ran, so what is left of
// each grant is what a reload would have left of it.
func (f *Firewall) readLedger(now time.Time) error {
	if f.held != nil {
		f.adjust(now)
		return nil
	}
	f.ends.seen = now
	held, err := f.ledger.Book(f.cfg.Now(), int(f.cfg.size))
	if err != nil {
		return err
	}
	f.held = held
	r, err := f.rehold(&f.cfg, now)
	if err != nil {
		f.held = nil
		return err
	}
	for _, h := range r.leaving {
		f.ledger.Release(h.Slot)
	}
	if n := len(r.leaving); n > 0 {
		f.log.Warn("grants from before the start ended or were shortened: the configuration does not allow all of them",
			"grants", n)
	}
	return nil
}

// carry determines the flows that the guard must carry: on a first load all existing ones, later those that the guard
// in place still carries.
func (f *Firewall) carry(s *state, now time.Time) error {
	phase, err := f.ledger.Phase()
	if err != nil {
		return err
	}
	s.carried, err = f.backend.Carried()
	if err != nil {
		return fmt.Errorf("reading the flows that are carried: %w", err)
	}
	for i := range s.carried {
		c := &s.carried[i]
		c.Until = now.Add(min(c.Remaining, f.cfg.carries(c.Flow)))
	}
	if phase != ledger.LoadAgain && !f.cfg.NoCarry {
		flows, err := f.established(f.cfg.guards)
		if err != nil {
			return fmt.Errorf("listing the sessions that the first load must not end: %w", err)
		}
		s.carried = f.cfg.carry(flows, now)
	}
	return nil
}

// carries returns how long a load carries an existing flow.
func (c *Config) carries(l guard.Flow) time.Duration {
	if l.Proto != service.TCP || service.Covers(c.Cut, l.Proto, l.Local.Port()) {
		return carryFor
	}
	return carryTCPFor
}

func (c *Config) carry(flows []guard.Flow, now time.Time) []guard.Carried {
	carried := make([]guard.Carried, len(flows))
	for i, l := range flows {
		carried[i] = guard.Carried{Flow: l, Until: now.Add(c.carries(l))}
	}
	return carried
}

// established lists the existing flows of a kind that the guard must carry; in a dry run there are none.
func (f *Firewall) established(kind func(guard.Flow) bool) ([]guard.Flow, error) {
	if f.sessions == nil || f.cfg.Mode != Guard {
		return nil, nil
	}
	return f.sessions.Flows(kind)
}

// checkPhase returns ErrTornDown if the guard was torn down.
func (f *Firewall) checkPhase() error {
	phase, err := f.ledger.Phase()
	if err == nil && phase == ledger.TornDown {
		err = ErrTornDown
	}
	return err
}

// restore puts the guard back as it should be at now. What the kernel knew of grants that admit one flow may be lost,
// so none of them admits another. The caller holds the lock and the ledger's lock.
func (f *Firewall) restore(now time.Time) error { return f.place(now, true) }

// place puts the guard into the kernel as it should be at now.
func (f *Firewall) place(now time.Time, spend bool) error {
	if err := f.mayStand(now); err != nil {
		return err
	}
	p := guard.Plan{Leases: f.held.Leases(), Spend: spend, ConfirmBy: f.state.confirmBy, Carried: f.state.carried}
	return f.put(p)
}

// mayStand returns an error if the guard was torn down, or if its trial is over.
func (f *Firewall) mayStand(now time.Time) error {
	if err := f.checkPhase(); err != nil {
		return err
	}
	if !f.state.confirmBy.IsZero() && guard.Remaining(f.state.confirmBy, now) <= 0 {
		return ErrUnconfirmed
	}
	return nil
}

// Teardown removes our table, whether or not a daemon runs, and makes the next load a first load. A running daemon's
// Watch returns ErrTornDown; if the table belongs to the daemon, Teardown waits until the daemon has removed it. A
// missing table is no error; a table that is not ours is ErrForeign. A dry run has nothing to tear down.
func Teardown(state string) error {
	f, err := ledger.OpenFile(state, false)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) { // the next load is a first load anyway
			err = nil
		}
		rest, failed := teardownAll(state, func() error { return nil })
		return errors.Join(err, failed, rest())
	}
	rest := func() error { return nil }
	err = statefile.Alone(f, func() (err error) {
		rest, err = teardownAll(state, func() error { return ledger.WritePhase(f, ledger.TornDown) })
		return err
	})
	// The lock is released: the daemon needs it to read the phase.
	return errors.Join(err, rest(), f.Close())
}

// ForceFirstLoad makes the next load a first load. Without a ledger it is one anyway.
func ForceFirstLoad(state string) error {
	f, err := ledger.OpenFile(state, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(statefile.Alone(f, func() error { return ledger.WritePhase(f, ledger.LoadFirst) }), f.Close())
}
