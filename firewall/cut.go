package firewall

import (
	"context"
	"errors"
	"fmt"
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
			return 0, errors.New("firewall: a grant without a source address has no sessions")
		}
	}
	mark := f.cfg.Mark
	if f.cfg.Mode == Admit {
		mark = 0 // nothing marks what the host's own rules let in
	}
	n, err := f.sessions.cut(func(l flow) bool { return covers(gs, l) && !f.live(l) }, mark)
	if err != nil {
		return n, fmt.Errorf("firewall: ending sessions: %w", err)
	}
	return n, nil
}

// covers reports whether one of the grants is for the flow's address and port.
func covers(gs []Grant, l flow) bool {
	for i := range gs {
		if normal(gs[i].Source) == l.remote.Addr() && contains(gs[i].Ports, l.proto, l.local.Port()) {
			return true
		}
	}
	return false
}

// live reports whether a live grant is for the flow's address and port. It is asked of each
// session right before its end, for a grant may come meanwhile.
func (f *Firewall) live(l flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return false
	}
	f.held.expire(f.cfg.Now())
	return f.held.elements[element{l.remote.Addr(), l.proto, l.local.Port()}] != nil
}
