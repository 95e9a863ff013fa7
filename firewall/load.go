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

// How long a flow that was there before the first load has to send something. Once it has, it is
// marked and lives on. A session of TCP may be silent for a night: all that a carried element lets in
// are packets without SYN between two addresses and ports, which begin nothing but by a SYN cookie. A datagram may, and
// a port whose sessions end with the grant must not stay open, so those are carried for a short time.
const (
	carryFor    = 10 * time.Minute
	carryTCPFor = 12 * time.Hour
)

// Load puts the guard in the kernel in one batch, with the grants that still live; where no
// rule of ours keeps connection tracking going, behind a simpler one that goes before. If
// the guard is there already it is replaced; guarded ports are shut at every moment. A
// table of our name that is not ours is ErrForeign.
//
// With confirm above zero the kernel itself takes the guard away after that time, also
// when this process is gone, unless Watch sees a new flow through a grant before.
//
// A dry run loads nothing. It ends what earlier runs granted, for it could revoke none of it, and
// leaves their guard, which then lets nobody in; where that fails, Load does.
//
// The first load carries the flows to guarded ports that are established already: it is
// the one after MarkFirst, Teardown, an unconfirmed run, or with a fresh ledger.
func (f *Firewall) Load(ctx context.Context, confirm time.Duration, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if confirm > 0 && f.cfg.Mode == Admit {
		return errors.New("mode admit shuts nothing, so there is nothing to confirm; start without --confirm")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.recall(now); err != nil {
		return err
	}
	if err := f.ledger.Alone(func() error { return f.load(confirm, now) }); err != nil {
		return err
	}
	f.wakeForNext(now)
	return f.sweep(now)
}

// load is Load for a caller that holds the lock and has the ledger alone.
func (f *Firewall) load(confirm time.Duration, now time.Time) error {
	next := state{loaded: true}
	if confirm > 0 {
		next.confirmBy = now.Add(confirm)
	}
	if err := f.carry(&next, now); err != nil {
		return err
	}
	p := guard.Plan{
		Leases:    f.held.Leases(),
		ConfirmBy: next.confirmBy,
		Carried:   next.carried,
	}
	// Whatever happens between the two, the next load must not take this one for
	// settled before it is.
	if confirm > 0 {
		if err := f.ledger.SetMark(ledger.LoadFirst); err != nil {
			return err
		}
	}
	if err := f.backend.Load(f.cfg.spec(), p); err != nil {
		return err
	}
	f.guard = next
	if confirm > 0 {
		return nil
	}
	return f.ledger.SetMark(ledger.LoadAgain)
}

// recall takes from the ledger who holds what, once.
func (f *Firewall) recall(now time.Time) error {
	if f.held != nil {
		f.adjust(now)
		return nil
	}
	f.ends.seen = now
	keep := func(h *ledger.Holding) bool { return f.cfg.Keep == nil || f.cfg.Keep(grantOf(h)) }
	held, err := f.ledger.Recall(f.cfg.Now(), int(f.cfg.size), keep)
	if err != nil {
		return err
	}
	f.held = held
	return nil
}

// carry fills in which flows the guard has to carry: on a first load those that are
// established, later those that the guard in place still carries.
func (f *Firewall) carry(s *state, now time.Time) error {
	mark, err := f.ledger.Mark()
	if err != nil {
		return err
	}
	s.carried, err = f.backend.Carried()
	if err != nil {
		return fmt.Errorf("reading the flows that are carried: %w", err)
	}
	for i := range s.carried {
		c := &s.carried[i]
		c.Until = now.Add(min(c.Left, f.cfg.carries(c.Flow)))
	}
	if mark != ledger.LoadAgain && !f.cfg.NoCarry {
		flows, err := f.established(f.cfg.guards)
		if err != nil {
			return fmt.Errorf("listing the sessions that the first load must not end: %w", err)
		}
		s.carried = f.cfg.carry(flows, now)
	}
	return nil
}

// carries returns how long a load carries a flow that was there before.
func (c *Config) carries(l guard.Flow) time.Duration {
	if l.Proto != service.TCP || guard.Contains(c.Cut, l.Proto, l.Local.Port()) {
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

// established lists the flows of that kind which a guard has to carry; a dry run has none.
func (f *Firewall) established(kind func(guard.Flow) bool) ([]guard.Flow, error) {
	if f.sessions == nil || f.cfg.Mode != Guard {
		return nil, nil
	}
	return f.sessions.Flows(kind)
}

// restore puts the guard back as it should be at now. The caller holds the lock and has the
// ledger alone.
func (f *Firewall) restore(now time.Time) error {
	mark, err := f.ledger.Mark()
	if err != nil {
		return err
	}
	if mark == ledger.TornDown {
		return ErrTornDown
	}
	if !f.guard.confirmBy.IsZero() && guard.Left(f.guard.confirmBy, now) <= 0 {
		return ErrUnconfirmed
	}
	p := guard.Plan{Leases: f.held.Leases(), ConfirmBy: f.guard.confirmBy, Carried: f.guard.carried}
	return f.backend.Load(f.cfg.spec(), p)
}

// Teardown takes our table away, whether a daemon runs or not, and makes the next load a
// first load. A daemon that runs ends its Watch with ErrTornDown; where the table is the
// daemon's own, Teardown waits until it has removed it. Where there is no table that is no
// error; one that is not ours is ErrForeign. The dry run has nothing to tear down.
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
		rest, err = teardownAll(state, func() error { return ledger.WriteMark(f, ledger.TornDown) })
		return err
	})
	// No longer alone: the daemon has to be, to see the mark.
	return errors.Join(err, rest(), f.Close())
}

// MarkFirst makes the next load a first load. Where there is no ledger, it is one anyway.
func MarkFirst(state string) error {
	f, err := ledger.OpenFile(state, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(statefile.Alone(f, func() error { return ledger.WriteMark(f, ledger.LoadFirst) }), f.Close())
}
