package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

var errNotLoaded = errors.New("no guard is loaded")

// Grant opens the ports of all grants or of none. It writes them to the ledger before it changes the kernel. A grant
// that its client already holds is prolonged, never shortened. A grant ends by elapsed time or by the wall clock,
// whichever is first, so neither a clock that is set back nor a sleeping machine prolongs it.
func (f *Firewall) Grant(ctx context.Context, gs []Grant, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	asked, err := checked(gs, now)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.loaded {
		return errNotLoaded
	}
	if err := errors.Join(f.checkOwn(gs), f.cfg.checkOnce(gs, now)); err != nil {
		return err
	}
	f.endOver(now)
	changes, err := f.changes(f.cfg.asHeld(asked))
	if err != nil {
		return err
	}
	if err := f.record(changes); err != nil {
		return errors.Join(err, f.unrecord(changes))
	}
	if err := f.enforce(changes, now); err != nil {
		err = errors.Join(err, f.unrecord(changes))
		if errors.Is(err, nl.ErrNoAnswer) { // the kernel may have made the change
			err = errors.Join(err, f.ledger.Alone(func() error { return f.restore(now) }))
		}
		return err
	}
	f.held.Apply(changes)
	f.wakeForNext(now)
	return nil
}

// checked returns the grants as ledger records, or an error if one of them is invalid.
func checked(gs []Grant, now time.Time) ([]*ledger.Holding, error) {
	for i := range gs {
		if slices.ContainsFunc(gs[i].To, func(a netip.Addr) bool { return !a.IsValid() }) {
			return nil, errors.New("a grant needs destination addresses")
		}
		if len(gs[i].Ports) == 0 && len(gs[i].To) > 0 {
			return nil, errors.New("a grant without ports has no destination")
		}
	}
	hs := holdingsOf(gs, now)
	for _, h := range hs {
		if err := h.Check(now); err != nil {
			return nil, err
		}
	}
	return hs, nil
}

// holdingsOf returns the grants as ledger records.
func holdingsOf(gs []Grant, now time.Time) []*ledger.Holding {
	hs := make([]*ledger.Holding, 0, len(gs))
	for i := range gs {
		until := now.Add(guard.Remaining(gs[i].Until, now)) // with now's monotonic reading, which Until may lack
		for _, h := range gs[i].holdings() {
			h.Until, h.Asked = until, gs[i].Asked
			hs = append(hs, h)
		}
	}
	return hs
}

// changes finds the holdings that there are already, and gives the others slots in the ledger.
func (f *Firewall) changes(asked []*ledger.Holding) ([]ledger.Change, error) {
	changes := make([]ledger.Change, 0, len(asked))
	fresh := make(map[ledger.Key]int) // indexes of new holdings in changes
	for _, h := range asked {
		key := h.Key()
		if old := f.held.Find(key); old != nil {
			changes = append(changes, ledger.Change{Holding: old, Until: ledger.Later(h.Until, old.Until),
				Asked: ledger.Later(h.Asked, old.Asked)})
			continue
		}
		if i, again := fresh[key]; again {
			changes[i].Until = ledger.Later(h.Until, changes[i].Until)
			changes[i].Asked = ledger.Later(h.Asked, changes[i].Asked)
			continue
		}
		fresh[key] = len(changes)
		changes = append(changes, ledger.Change{Holding: h, Until: h.Until, Asked: h.Asked, Fresh: true})
	}
	if free, all := f.ledger.Spare(); len(fresh) > free {
		return nil, fmt.Errorf("%w: the ledger holds %d", guard.ErrFull, all)
	}
	for i := range changes {
		if changes[i].Fresh {
			changes[i].Slot = f.ledger.Allocate()
		}
	}
	return changes, nil
}

// holdings returns the grant as ledger records: one for each destination and each MaxRanges ranges.
func (g *Grant) holdings() []*ledger.Holding {
	destinations, ranges := []netip.Addr{{}}, ledger.MaxRanges
	if len(g.To) > 0 {
		destinations, ranges = g.To, 1
	}
	if len(g.Ports) == 0 { // the kernel has nothing of it
		return []*ledger.Holding{{Client: g.Client, Service: g.Service, Source: guard.Normal(g.Source),
			Link: guard.LinkOf(g.Source), Bits: g.Bits, Lent: g.Lent}}
	}
	var hs []*ledger.Holding
	for _, to := range destinations {
		for ports := range slices.Chunk(g.Ports, ranges) {
			hs = append(hs, &ledger.Holding{
				Client: g.Client, Service: g.Service, Source: guard.Normal(g.Source), Link: guard.LinkOf(g.Source),
				Bits: g.Bits, Lent: g.Lent, To: guard.Normal(to), Ports: slices.Clone(ports),
			})
		}
	}
	return hs
}

// record writes the changes to the ledger.
func (f *Firewall) record(changes []ledger.Change) error {
	for _, c := range changes {
		h := c.After()
		if err := f.ledger.Write(&h, f.cfg.Now()); err != nil {
			return err
		}
	}
	return nil
}

// unrecord writes the ledger back to what memory holds.
func (f *Firewall) unrecord(changes []ledger.Change) error {
	var errs []error
	for _, c := range changes {
		if !c.Fresh {
			errs = append(errs, f.ledger.Write(c.Holding, f.cfg.Now()))
			continue
		}
		errs = append(errs, f.ledger.Erase(c.Holding))
		f.ledger.Release(c.Slot)
	}
	return errors.Join(errs...)
}

// enforce puts the changes into the kernel. If another tool has just removed the guard, it restores the guard first
// rather than waiting for Watch.
func (f *Firewall) enforce(changes []ledger.Change, now time.Time) error {
	defer func() { f.coming = nil }()
	if err := f.widen(changes, now); err != nil {
		return err
	}
	leases := f.newTurns(f.leases(changes), changes)
	err := f.set(leases)
	if !errors.Is(err, guard.ErrGone) {
		return err
	}
	if err := f.ledger.Alone(func() error { return f.restore(now) }); err != nil {
		return err
	}
	return f.set(leases)
}

// leases returns the elements of changed holdings, and when they end then.
func (f *Firewall) leases(changes []ledger.Change) []guard.Lease {
	n := 0
	for _, c := range changes {
		n += c.Size()
	}
	leases := make([]guard.Lease, 0, n)
	at := make(map[guard.Element]int) // indexes in leases, if several holdings may have the same element
	for _, c := range changes {
		c.Each(func(e guard.Element) {
			i, again := at[e]
			if !again {
				was := f.held.EndOf(e)
				i, leases = len(leases), append(leases, guard.Lease{Element: e, Until: was, Was: was})
			}
			if len(changes) > 1 {
				at[e] = i
			}
			leases[i].Until = ledger.Later(leases[i].Until, c.Until)
		})
	}
	return leases
}

// set changes elements of the kernel, and reports how long that took to the observer, if there is one.
func (f *Firewall) set(ls []guard.Lease) error {
	if f.timed == nil {
		return f.backend.Set(ls)
	}
	start := time.Now()
	err := f.backend.Set(ls)
	f.timed(time.Since(start))
	return err
}

func leasesOf(ends map[guard.Element]time.Time) []guard.Lease {
	ls := make([]guard.Lease, 0, len(ends))
	for e, end := range ends {
		ls = append(ls, guard.Lease{Element: e, Until: end})
	}
	return ls
}

// left reports that grants have ended. The caller holds the lock.
func (f *Firewall) left() {
	if f.cfg.Left != nil {
		f.cfg.Left()
	}
}

// Revoke ends the grants that match and returns them, including those that have just ended but may still be in the
// kernel. A grant of another client for the same address and port is unaffected. Sessions continue.
func (f *Firewall) Revoke(ctx context.Context, m Match, now time.Time) ([]Grant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.loaded {
		return nil, errNotLoaded
	}
	f.adjust(now)
	leaving := matching(f.held, m)
	if len(leaving) == 0 {
		return nil, nil
	}
	ends := f.held.EndsWithout(leaving)
	if err := f.erase(leaving); err != nil {
		return nil, errors.Join(err, f.unerase(leaving))
	}
	err := f.set(noMore(leasesOf(ends)))
	if err != nil && !errors.Is(err, guard.ErrGone) { // Watch restores the guard without these grants
		return nil, errors.Join(err, f.unerase(leaving))
	}
	gs := make([]Grant, 0, len(leaving))
	for _, h := range leaving {
		gs = append(gs, grantOf(h))
		f.held.Remove(h)
	}
	f.held.Shorten(ends)
	f.left()
	slices.SortFunc(gs, compareGrants)
	return gs, nil
}

func (f *Firewall) erase(leaving []*ledger.Holding) error {
	for _, h := range leaving {
		if err := f.ledger.Erase(h); err != nil {
			return err
		}
	}
	return nil
}

func (f *Firewall) unerase(leaving []*ledger.Holding) error {
	var errs []error
	for _, h := range leaving {
		errs = append(errs, f.ledger.Write(h, f.cfg.Now()))
	}
	return errors.Join(errs...)
}

// matching returns the holdings that m selects. If m names a client, it looks only at that client's.
func matching(held *ledger.Book, m Match) []*ledger.Holding {
	from := held.All()
	if m.Client != "" {
		from = held.Of(m.Client)
	}
	var found []*ledger.Holding
	for h := range from {
		if m.matches(h) {
			found = append(found, h)
		}
	}
	return found
}

// matches reports whether m's address, services and time match the holding. The client is matching's part.
func (m *Match) matches(h *ledger.Holding) bool {
	return (!m.Source.IsValid() || guard.Prefix(guard.Normal(m.Source), m.Bits).Overlaps(guard.Prefix(h.Source, h.Bits)) &&
		(m.Source.Zone() == "" || guard.LinkOf(m.Source) == h.Link)) &&
		(m.Peer == Peer{} || m.Peer == Peer{guard.OnLink(h.Source, h.Link), h.Bits, h.Lent}) &&
		(m.Services == nil || slices.Contains(m.Services, h.Service)) &&
		(m.Asked.IsZero() || !h.Asked.After(m.Asked))
}

// live returns the grants that m selects and that are live at now, sorted.
func live(held *ledger.Book, m Match, now time.Time) []Grant {
	var gs []Grant
	for _, h := range matching(held, m) {
		if h.Live(now) {
			gs = append(gs, grantOf(h))
		}
	}
	slices.SortFunc(gs, compareGrants)
	return gs
}

// grantOf returns the grant, or the part of one, that a holding records.
func grantOf(h *ledger.Holding) Grant {
	g := viewOf(h)
	g.Ports = slices.Clone(h.Ports)
	return g
}

// viewOf is grantOf without a copy of the ports, which never change.
func viewOf(h *ledger.Holding) Grant {
	g := Grant{Client: h.Client, Service: h.Service, Source: guard.OnLink(h.Source, h.Link), Bits: h.Bits,
		Lent: h.Lent, Ports: slices.Clip(h.Ports), Until: h.Until, Asked: h.Asked, Once: h.Once}
	if h.To.IsValid() {
		g.To = []netip.Addr{h.To}
	}
	return g
}

// Continues reports whether g is another part of the same grant as before, which precedes it in [Firewall.Grants].
// After a restart their ends may differ by microseconds.
func (g Grant) Continues(before Grant) bool {
	same := g.Client == before.Client && g.Service == before.Service && g.Peer() == before.Peer()
	return same && g.Until.Sub(before.Until).Abs() < time.Second && !slices.ContainsFunc(g.Ports,
		func(p service.Ports) bool { return slices.Contains(before.Ports, p) })
}

func compareGrants(a, b Grant) int { return a.compare(&b) }

// compare looks only as far as it must: sorting many grants calls it often.
func (g *Grant) compare(h *Grant) int {
	if c := cmp.Compare(g.Client, h.Client); c != 0 {
		return c
	}
	if c := cmp.Compare(g.Service, h.Service); c != 0 {
		return c
	}
	if c := g.Peer().compare(h.Peer()); c != 0 {
		return c
	}
	return cmp.Or(slices.CompareFunc(g.To, h.To, netip.Addr.Compare),
		slices.CompareFunc(g.Ports, h.Ports, guard.ComparePorts))
}
