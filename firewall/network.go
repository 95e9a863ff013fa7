package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
)

// ErrOwn is returned by Grant for a network with an address of this host.
var ErrOwn = errors.New("it has an address of this gateway")

// Peer is the address or network that a grant lets in.
type Peer struct {
	Source netip.Addr
	Bits   uint8
	Lent   bool
}

// Peer returns the address or network that the grant lets in, and whether it was delegated.
func (g Grant) Peer() Peer { return Peer{g.Source, g.Bits, g.Lent} }

// Network returns the addresses that the grant lets in: a network, or one address.
func (g Grant) Network() netip.Prefix { return guard.Prefix(guard.Normal(g.Source), g.Bits) }

// String returns the network or the address.
func (p Peer) String() string {
	if p.Bits == 0 {
		return p.Source.String()
	}
	return guard.Prefix(p.Source, p.Bits).String()
}

// compare orders peers.
func (p Peer) compare(q Peer) int {
	if c := p.Source.Compare(q.Source); c != 0 {
		return c
	}
	if p.Bits != q.Bits {
		return int(p.Bits) - int(q.Bits)
	}
	return map[bool]int{true: 1}[p.Lent] - map[bool]int{true: 1}[q.Lent]
}

// MayLetIn returns [ErrOwn] if Grant would, for callers that must know it before they use something up.
func (f *Firewall) MayLetIn(gs []Grant) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checkOwn(gs)
}

// checkOwn returns ErrOwn if a grant for more than its sender's address has an address of this host.
func (f *Firewall) checkOwn(gs []Grant) error {
	for _, g := range gs {
		if g.Bits == 0 && !g.Lent || f.sessions == nil {
			continue
		}
		if f.cfg.Mode == Admit && g.Bits > 0 {
			return errors.New("mode admit: the keys of your sets are addresses, so no network can be let in")
		}
		own, err := f.sessions.Own()
		if err != nil {
			return fmt.Errorf("finding out this host's addresses: %w", err)
		}
		if slices.ContainsFunc(own, g.Network().Overlaps) {
			return fmt.Errorf("%s: %w", g.Peer(), ErrOwn)
		}
	}
	return nil
}

// widened returns the guard with the widths of the networks that grants let in, and of those that are about to.
func (f *Firewall) widened() guard.Spec {
	spec := f.cfg.spec()
	spec.Spans = slices.Concat(f.held.Spans(), f.coming)
	slices.SortFunc(spec.Spans, guard.CompareSpans)
	spec.Spans = slices.Compact(spec.Spans)
	return spec
}

// ExpectNetworks gets the guard ready for grants for networks. Without it the first such grant takes longer, and the
// others wait for it: see [Config.Networks].
func (f *Firewall) ExpectNetworks(ctx context.Context, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg.Networks || !f.state.loaded {
		return nil
	}
	f.cfg.Networks = true
	defer func() { f.coming = nil }()
	return f.ledger.Alone(func() error { return f.grow(now) })
}

// put loads the guard with rules for the networks that grants let in, and for those that are about to.
func (f *Firewall) put(p guard.Plan) error {
	spec := f.widened()
	if err := f.backend.Load(spec, p); err != nil {
		return err
	}
	f.spans = spec.Spans
	return nil
}

// widen adds rules for the width of these networks to the guard if it lacks them: without such grants it has no rules
// for networks. Rules for a width stay until the next load, so that a client cannot change them with each knock. All
// else stays as it is: beside many grants a load would take long.
func (f *Firewall) widen(changes []ledger.Change, now time.Time) error {
	f.coming = nil
	for _, c := range changes {
		e := guard.Element{Source: c.Source, Bits: c.Bits}
		if s, ok := e.Span(); ok && len(c.Ports) > 0 && !slices.Contains(f.coming, s) {
			f.coming = append(f.coming, s)
		}
	}
	if !slices.ContainsFunc(f.coming, func(s guard.Span) bool { return !slices.Contains(f.spans, s) }) {
		return nil
	}
	return f.ledger.Alone(func() error { return f.grow(now) })
}

// grow adds the rules that the guard lacks for networks. If that fails it loads the guard. The caller holds the
// ledger's lock.
func (f *Firewall) grow(now time.Time) error {
	if err := f.mayStand(now); err != nil {
		return err
	}
	if !f.state.confirmBy.IsZero() && f.entered() { // the counters are about to be lost
		if err := f.stay(); err != nil {
			return err
		}
	}
	f.coming = append(f.coming, f.spans...)
	spec := f.widened()
	if err := f.backend.Widen(spec, !f.state.confirmBy.IsZero()); err != nil {
		f.log.Debug("loading the whole guard: it could not get rules for more networks", "error", err)
		return f.place(now, false)
	}
	f.spans = spec.Spans
	return nil
}
