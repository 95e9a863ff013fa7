package firewall

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// errRestart is returned by Reconfigure when a changed setting needs a restart. Nothing was changed.
var errRestart = errors.New("these settings need a restart to change")

// Reconfigure changes the guard to match c in one batch. Guarded, Targets, Forwards, Knock, Closed, Trusted, TPROXY,
// Cut, Once and Keep may change; if another field differs, Reconfigure returns an error with its name. It ignores
// Networks: see ExpectNetworks. Ports that stay guarded are never open in between, and their grants continue. Grants
// for ports that are no longer guarded, or that lead to another place than before, end, as do grants that Keep rejects;
// the log names them. Flows to ports that become guarded are carried as by a first load. If the batch fails, guard and
// grants stay as they were.
func (f *Firewall) Reconfigure(ctx context.Context, c Config, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.setDefaults()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.loaded {
		return errNotLoaded
	}
	if fixed := f.cfg.fixed(&c); len(fixed) > 0 {
		return fmt.Errorf("%w: %s", errRestart, strings.Join(fixed, ", "))
	}
	if err := c.check(); err != nil {
		return err
	}
	f.endOver(now)
	defer f.wakeForNext(now)
	return f.ledger.Alone(func() error { return f.reconfigure(&c, now) })
}

// fixed names the changed fields that only New reads.
func (c *Config) fixed(n *Config) []string {
	var names []string
	for _, field := range []struct {
		name    string
		differs bool
	}{
		{"backend", c.Backend != n.Backend},
		{"mode", c.Mode != n.Mode},
		{"admit", c.Admit != n.Admit},
		{"persist", c.Persist != n.Persist},
		{"mark", c.Mark != n.Mark},
		{"state", c.State != n.State},
	} {
		if field.differs {
			names = append(names, field.name)
		}
	}
	return names
}

// apply copies the settings that may change at run time.
func (c *Config) apply(n *Config) {
	c.Guarded, c.Targets, c.Forwards, c.Knock = n.Guarded, n.Targets, n.Forwards, n.Knock
	c.Closed, c.Trusted, c.TPROXY, c.Cut, c.Keep = n.Closed, n.Trusted, n.TPROXY, n.Cut, n.Keep
	c.Once = n.Once
}

// reconfigure is Reconfigure for a caller that holds the lock and the ledger's lock.
func (f *Firewall) reconfigure(c *Config, now time.Time) error {
	if err := f.checkPhase(); err != nil {
		return err
	}
	if !f.state.confirmBy.IsZero() && f.entered() { // the counters are about to be lost
		if err := f.stay(); err != nil {
			return err
		}
	}
	next, err := f.carryNew(c, now)
	if err != nil {
		return err
	}
	r, err := f.rehold(c, now)
	if err != nil {
		return err
	}
	config, before := f.cfg, f.state
	f.cfg.apply(c)
	f.state = next
	err = f.place(now, false)
	if err != nil {
		f.cfg.apply(&config)
		f.state = before
		return errors.Join(err, f.undo(r))
	}
	for _, h := range r.leaving {
		f.ledger.Release(h.Slot)
		f.log.Warn("grant ended or shortened: the new configuration does not allow all of it",
			"client", h.Client, "service", h.Service, "source", grantOf(h).Peer().String(), "ports", fmt.Sprint(h.Ports))
	}
	if len(r.leaving) > 0 {
		f.left()
	}
	return nil
}

// carryNew returns the state, with the flows added whose port or destination becomes guarded.
func (f *Firewall) carryNew(c *Config, now time.Time) (state, error) {
	next := f.state
	flows, err := f.established(func(l guard.Flow) bool {
		return c.guards(l) && !f.cfg.guards(l)
	})
	if err != nil {
		return next, fmt.Errorf("listing the sessions of ports that become guarded: %w", err)
	}
	next.carried = slices.Concat(next.carried, c.carry(flows, now))
	for i := range next.carried {
		carried := &next.carried[i]
		if latest := now.Add(c.carries(carried.Flow)); carried.Until.After(latest) { // its port may be in Cut now
			carried.Until = latest
		}
	}
	return next, nil
}

// reheld records what rehold did, for undo.
type reheld struct {
	before  *ledger.Book
	leaving []*ledger.Holding // earlier holdings; their slots stay taken until the batch succeeds
	changes []ledger.Change
}

// rehold removes from the ledger and from memory what may not be held under c. A grant keeps those of its ports that
// stay guarded and lead to the same place. If the ledger has no room for what is left of grants, they end.
func (f *Firewall) rehold(c *Config, now time.Time) (*reheld, error) {
	r := &reheld{before: f.held}
	next := ledger.NewBook(f.ledger.Release)
	unkept := c.unkept(f.held)
	var parts []*ledger.Holding
	for h := range f.held.All() {
		if unkept[ownerOf(h)] {
			r.leaving = append(r.leaving, h)
			continue
		}
		ports := within(c.unmoved(h), c.portsAt(h.To))
		if slices.Equal(ports, h.Ports) {
			same := *h
			next.Add(&same)
			continue
		}
		r.leaving = append(r.leaving, h)
		parts = append(parts, partsOf(h, ports)...)
	}
	f.held = next
	var err error
	if r.changes, err = f.changes(parts); err != nil && !errors.Is(err, guard.ErrFull) {
		f.held = r.before
		return nil, err
	}
	if err := errors.Join(f.record(r.changes), f.erase(r.leaving)); err != nil {
		return nil, errors.Join(err, f.undo(r))
	}
	f.held.Apply(r.changes)
	return r, nil
}

// undo restores memory and ledger to what they held before rehold.
func (f *Firewall) undo(r *reheld) error {
	f.held = r.before
	for i := range r.changes {
		if c := &r.changes[i]; !c.Fresh {
			c.Holding = f.held.Find(c.Key())
		}
	}
	return errors.Join(f.unrecord(r.changes), f.unerase(r.leaving))
}

// within returns the part of the ranges that is in others, or the ranges themselves if all of them are.
func within(ranges, others []service.Ports) []service.Ports {
	inside := make(map[service.Proto]map[uint16]bool)
	all := true
	one := ledger.Holding{Ports: ranges}
	one.Each(func(e guard.Element) {
		if !service.Covers(others, e.Proto, e.Port) {
			all = false
			return
		}
		if inside[e.Proto] == nil {
			inside[e.Proto] = make(map[uint16]bool)
		}
		inside[e.Proto][e.Port] = true
	})
	if all {
		return ranges
	}
	var rs []service.Ports
	for _, proto := range slices.Sorted(maps.Keys(inside)) {
		for _, port := range slices.Sorted(maps.Keys(inside[proto])) {
			if last := len(rs) - 1; last >= 0 && rs[last].Proto == proto && rs[last].High+1 == port {
				rs[last].High = port
				continue
			}
			rs = append(rs, service.Ports{Proto: proto, Low: port, High: port})
		}
	}
	return rs
}
