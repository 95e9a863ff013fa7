package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// Cut ends the sessions of grants that were revoked or have ended, and returns how many it ended. These include
// sessions that DNAT leads to another machine, and those in which only the server sends. Cut spares sessions that
// another live grant for the same address and port covers, and in mode Guard those that came in without a grant, by a
// trusted interface.
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
		mark = 0 // the host's own rules admit flows and do not mark them
	}
	covered := func(l guard.Flow) bool { return f.covers(gs, l) && !f.live(l) }
	n, err := f.sessions.Cut(covered, f.target, mark)
	if err != nil {
		return n, fmt.Errorf("ending sessions: %w", err)
	}
	return n, nil
}

// target reports whether a is an address of a target.
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
		if g.Network().Contains(l.Remote.Addr()) && service.Covers(g.Ports, l.Proto, l.Local.Port()) && (here || there) {
			return true
		}
	}
	return false
}

// live reports whether a live grant covers the flow. Cut calls it for each session right before ending it, because a
// grant may have been added in between. A session from a link-local address never counts as live: its link is
// unknown, and ending one session too many is better than leaving one open.
func (f *Firewall) live(l guard.Flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return false
	}
	return guard.Remaining(f.held.Covering(f.cfg.elementOf(l)), f.cfg.Now()) > 0
}
