package firewall

import (
	"slices"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// enteredByOne reports whether a new flow has come through a grant of the client that must confirm the guard. Counted
// says that one has come through the grant of some client: the kernel does not count by client. So flows are listed at
// each look while that client holds no grant, and a flow of its address and ports that was not there then is its own.
func (f *Firewall) enteredByOne(counted bool) bool {
	now := f.cfg.Now()
	flows, err := f.recent()
	if err != nil || guard.Remaining(f.state.confirmBy, now) <= 0 { // the ports have been open since
		return false
	}
	held := live(f.held, Match{Client: f.cfg.ConfirmBy}, now)
	if len(held) == 0 {
		f.state.earlier = flows
		return false
	}
	return counted && slices.ContainsFunc(flows, func(l guard.Flow) bool {
		return !slices.Contains(f.state.earlier, l) && slices.ContainsFunc(held, func(g Grant) bool { return g.lets(l) })
	})
}

// recent lists the flows to guarded ports, also those that have just ended: a command over ssh is short.
func (f *Firewall) recent() ([]guard.Flow, error) {
	if f.sessions == nil || f.cfg.Mode != Guard {
		return nil, nil
	}
	return f.sessions.Recent(f.cfg.guards)
}

// lets reports whether the grant is for a flow.
func (g Grant) lets(l guard.Flow) bool {
	return g.Network().Contains(l.Remote.Addr().Unmap().WithZone("")) &&
		service.Covers(g.Ports, l.Proto, l.Local.Port()) &&
		(len(g.To) == 0 || slices.Contains(g.To, l.Local.Addr().Unmap()))
}
