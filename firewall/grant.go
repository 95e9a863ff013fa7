package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
)

var (
	errNotLoaded = errors.New("no guard is loaded")
)

// change is what a grant makes of one holding.
type change struct {
	*holding
	until time.Time
	fresh bool // the holding is new, and its slot too
}

// Grant opens the ports of all grants, or of none. They are in the ledger before the
// kernel is told. A grant that its client holds already is prolonged, never shortened.
// It ends by the time that passes or by the wall clock, whichever is first: a clock that is
// set back prolongs nothing, nor does a machine that sleeps or is paused.
func (f *Firewall) Grant(ctx context.Context, gs []Grant, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range gs {
		if err := gs[i].check(now); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.guard.loaded {
		return errNotLoaded
	}
	f.endOver(now)
	changes, err := f.changes(gs, now)
	if err != nil {
		return err
	}
	if err := f.record(changes); err != nil {
		return errors.Join(err, f.unrecord(changes))
	}
	if err := f.enforce(changes, now); err != nil {
		return errors.Join(err, f.unrecord(changes))
	}
	f.held.apply(changes)
	f.wakeForNext(now)
	return nil
}

func (g *Grant) check(now time.Time) error {
	if !g.Source.IsValid() {
		return errors.New("a grant needs a source address")
	}
	if guard.LinkLocal(g.Source) {
		if err := g.checkLink(); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(g.To, func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }) {
		return errors.New("a grant needs destination addresses")
	}
	if slices.ContainsFunc(g.To, func(a netip.Addr) bool { return a.Unmap().Is4() != g.Source.Unmap().Is4() }) {
		return fmt.Errorf("%v cannot reach all of %v: a grant is for addresses of one family", g.Source, g.To)
	}
	if guard.Left(g.Until, now) <= 0 {
		return fmt.Errorf("a grant until %v has ended already", g.Until)
	}
	if len(g.Client) >= nameSize || len(g.Service) >= nameSize {
		return fmt.Errorf("a name of more than %d bytes does not fit the ledger", nameSize-1)
	}
	if len(g.Ports) == 0 {
		return errors.New("a grant needs ports")
	}
	for _, p := range g.Ports {
		if err := checkPorts(p); err != nil {
			return err
		}
	}
	return nil
}

// checkLink checks what holds for link-local sources only.
func (g *Grant) checkLink() error {
	b := g.Source.As16()
	switch {
	case g.Source.Unmap().Is4():
		return fmt.Errorf("no grant for %v: an IPv4 link-local address may be another machine on every link", g.Source)
	case guard.LinkOf(g.Source) == 0:
		return fmt.Errorf("a grant for %v needs the index of an interface as its zone", g.Source)
	case len(g.To) > 0:
		return fmt.Errorf("a grant for %v reaches this host only, not %v", g.Source, g.To)
	case [6]byte(b[2:8]) != [6]byte{}:
		return fmt.Errorf("%v is not in fe80::/64, as link-local addresses are", g.Source)
	}
	return nil
}

// changes finds or makes the holdings for the grants.
func (f *Firewall) changes(gs []Grant, now time.Time) ([]change, error) {
	changes := make([]change, 0, len(gs))
	fresh := make(map[holdingKey]int) // among changes
	for _, g := range gs {
		until := now.Add(guard.Left(g.Until, now)) // with now's monotonic reading, which g.Until may lack
		for _, h := range g.holdings() {
			if old := f.held.byKey[h.key()]; old != nil {
				changes = append(changes, change{holding: old, until: later(until, old.until)})
				continue
			}
			if i, again := fresh[h.key()]; again {
				changes[i].until = later(until, changes[i].until)
				continue
			}
			fresh[h.key()] = len(changes)
			changes = append(changes, change{holding: h, until: until, fresh: true})
		}
	}
	if len(fresh) > len(f.ledger.free) {
		return nil, fmt.Errorf("%w: the ledger holds %d", ErrFull, f.ledger.slots)
	}
	for i := range changes {
		if changes[i].fresh {
			changes[i].slot = f.ledger.allocate()
		}
	}
	return changes, nil
}

// holdings returns what the grant comes to in the ledger.
func (g *Grant) holdings() []*holding {
	destinations, ranges := []netip.Addr{{}}, maxRanges
	if len(g.To) > 0 {
		destinations, ranges = g.To, 1
	}
	var hs []*holding
	for _, to := range destinations {
		for ports := range slices.Chunk(g.Ports, ranges) {
			hs = append(hs, &holding{
				client: g.Client, service: g.Service, source: guard.Normal(g.Source), link: guard.LinkOf(g.Source),
				to: guard.Normal(to), ports: slices.Clone(ports),
			})
		}
	}
	return hs
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// record writes the changes to the ledger.
func (f *Firewall) record(changes []change) error {
	for _, c := range changes {
		if err := f.ledger.write(c.holding, c.until, f.cfg.Now()); err != nil {
			return err
		}
	}
	return nil
}

// unrecord makes the ledger say again what memory says.
func (f *Firewall) unrecord(changes []change) error {
	var errs []error
	for _, c := range changes {
		if !c.fresh {
			errs = append(errs, f.ledger.write(c.holding, c.holding.until, f.cfg.Now()))
			continue
		}
		errs = append(errs, f.ledger.erase(c.holding))
		f.ledger.release(c.slot)
	}
	return errors.Join(errs...)
}

// enforce tells the kernel what the changes come to. Where another tool has just taken
// the guard away, the grant need not wait for Watch.
func (f *Firewall) enforce(changes []change, now time.Time) error {
	n := 0
	for _, c := range changes {
		n += c.size()
	}
	ends := make(map[guard.Element]time.Time, n)
	for _, c := range changes {
		c.each(func(e guard.Element) {
			end := later(c.until, ends[e])
			if t := f.held.elements[e]; t != nil {
				end = later(end, t.until)
			}
			ends[e] = end
		})
	}
	err := f.backend.set(leasesOf(ends))
	if !errors.Is(err, guard.ErrGone) {
		return err
	}
	if err := f.ledger.alone(func() error { return f.restore(now) }); err != nil {
		return err
	}
	return f.backend.set(leasesOf(ends))
}

func leasesOf(ends map[guard.Element]time.Time) []guard.Lease {
	ls := make([]guard.Lease, 0, len(ends))
	for e, end := range ends {
		ls = append(ls, guard.Lease{Element: e, Until: end})
	}
	return ls
}

// Revoke ends the grants that match and returns them, also one whose time has just passed
// and that the kernel may not have ended yet. Where another client holds a grant for the
// same address and port, that one goes on as it was. Sessions go on.
func (f *Firewall) Revoke(ctx context.Context, m Match, now time.Time) ([]Grant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.guard.loaded {
		return nil, errNotLoaded
	}
	f.adjust(now)
	leaving := f.held.matching(m)
	if len(leaving) == 0 {
		return nil, nil
	}
	ends := f.held.endsWithout(leaving)
	if err := f.forget(leaving); err != nil {
		return nil, errors.Join(err, f.remember(leaving))
	}
	err := f.backend.set(leasesOf(ends))
	if err != nil && !errors.Is(err, guard.ErrGone) { // gone is gone; Watch puts back what is left
		return nil, errors.Join(err, f.remember(leaving))
	}
	gs := make([]Grant, 0, len(leaving))
	for _, h := range leaving {
		gs = append(gs, h.grant())
		f.held.remove(h)
	}
	f.held.shorten(ends)
	slices.SortFunc(gs, compareGrants)
	return gs, nil
}

func (f *Firewall) forget(leaving []*holding) error {
	for _, h := range leaving {
		if err := f.ledger.erase(h); err != nil {
			return err
		}
	}
	return nil
}

func (f *Firewall) remember(leaving []*holding) error {
	var errs []error
	for _, h := range leaving {
		errs = append(errs, f.ledger.write(h, h.until, f.cfg.Now()))
	}
	return errors.Join(errs...)
}
