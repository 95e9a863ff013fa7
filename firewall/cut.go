package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/firewall/internal/guard"
)

// Cut ends the sessions of grants that have been revoked, or have ended, and returns how
// many there were: also those that DNAT leads on, and those in which only the server
// speaks. It leaves alone what another live grant for the same address and port covers,
// and every other address and port. In mode Guard it leaves alone, too, what came in
// without a grant, by a trusted interface.
func (f *Firewall) Cut(ctx context.Context, gs []Grant) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if f.sessions == nil || len(gs) == 0 {
		return 0, nil
	}
	for i := range gs {
		if !gs[i].Source.IsValid() {
			return 0, errors.New("a grant without a source address has no sessions")
		}
	}
	mark := f.cfg.Mark
	if f.cfg.Mode == Admit {
		mark = 0 // nothing marks what the host's own rules let in
	}
	covered := func(l guard.Flow) bool { return f.covers(gs, l) && !f.live(l) }
	n, err := f.sessions.Cut(covered, f.target, mark)
	if err != nil {
		return n, fmt.Errorf("ending sessions: %w", err)
	}
	return n, nil
}

// target reports whether a service is at an address of its own that is this one.
func (f *Firewall) target(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.cfg.portsAt(a)) > 0
}

// covers reports whether one of the grants is for the flow's address, port and destination.
func (f *Firewall) covers(gs []Grant, l guard.Flow) bool {
	f.mu.Lock()
	to := f.cfg.elementOf(l).To
	f.mu.Unlock()
	for i := range gs {
		g := &gs[i]
		here := !to.IsValid() && len(g.To) == 0
		there := slices.ContainsFunc(g.To, func(a netip.Addr) bool { return guard.Normal(a) == to })
		if guard.Normal(g.Source) == l.Remote.Addr() && guard.Contains(g.Ports, l.Proto, l.Local.Port()) && (here || there) {
			return true
		}
	}
	return false
}

// live reports whether a live grant is for the flow's address, port and destination. It is asked
// of each session right before its end, because a grant may have come meanwhile. A session from
// a link-local address is never live: on which link it is cannot be told, and one that is cut
// by mistake is better than one that goes on.
func (f *Firewall) live(l guard.Flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return false
	}
	return guard.Left(f.held.EndOf(f.cfg.elementOf(l)), f.cfg.Now()) > 0
}
