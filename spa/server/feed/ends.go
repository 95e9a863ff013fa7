package feed

import (
	"container/heap"
	"context"
	"net/netip"
	"time"

	"sallyport/firewall"
	"sallyport/keys/deadline"
	"sallyport/spa/server/control"
)

// ends knows when the grants end that watchers have seen, or that were live when they joined. The kernel ends the
// grants; this only reports it.
type ends struct {
	due  deadline.Heap[end]
	at   map[owned]time.Time
	wake chan struct{} // there is an earlier end
}

// owned identifies a grant.
type owned struct {
	client, service string
	source          netip.Addr
	bits            uint8
}

func ownedBy(g firewall.Grant) owned { return owned{g.Client, g.Service, g.Source, g.Bits} }

type end struct {
	owned
	until time.Time
}

// networkOf returns the network of a grant, or nothing if it is for one address.
func networkOf(g firewall.Grant) netip.Prefix {
	if g.Bits == 0 {
		return netip.Prefix{}
	}
	return g.Network()
}

func (e end) Ends() time.Time { return e.until }
func (e end) Moved(int)       {}

func newEnds() *ends { return &ends{at: make(map[owned]time.Time), wake: make(chan struct{}, 1)} }

func (e *ends) clear() {
	e.due = nil
	clear(e.at)
}

// expect records when grants end.
func (e *ends) expect(gs []firewall.Grant) {
	for _, g := range gs {
		who := ownedBy(g)
		if !g.Until.After(e.at[who]) {
			continue
		}
		e.at[who] = g.Until
		heap.Push(&e.due, end{who, g.Until})
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// forget drops a grant that ended before its time.
func (e *ends) forget(g firewall.Grant) { delete(e.at, ownedBy(g)) }

// passed returns the grants that have expired, and when the next one does; zero if there is none.
func (e *ends) passed(now time.Time) (over []end, next time.Time) {
	for len(e.due) > 0 && !e.due[0].until.After(now) {
		last := heap.Pop(&e.due).(end)
		if e.at[last.owned].Equal(last.until) {
			delete(e.at, last.owned)
			over = append(over, last)
		}
	}
	return over, e.due.Next()
}

// Expect makes the ends of live grants visible to watchers, until the last watcher leaves.
func (h *Feed) Expect(gs []firewall.Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends.expect(gs)
}

// TellEnds reports expired grants to watchers, until ctx ends. It sleeps while there are no watchers.
func (h *Feed) TellEnds(ctx context.Context, now func() time.Time) error {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.ends.wake:
		case <-next.C:
		}
		if at := h.TellEnded(now()); !at.IsZero() {
			next.Reset(at.Sub(now()))
		}
	}
}

// TellEnded reports grants that have ended at now to watchers, and returns when the next one does. A grant that is
// renewed at that moment has a new end, which must not be forgotten with the old one.
func (h *Feed) TellEnded(now time.Time) (next time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	over, next := h.ends.passed(now)
	for _, e := range over {
		h.spread(control.Decision{Time: now, Verdict: "ended", Client: e.client, Source: e.source,
			Network: networkOf(firewall.Grant{Source: e.source, Bits: e.bits}), Services: []string{e.service}})
	}
	return next
}

// Revoked reports to watchers grants that ended early, and why.
func (h *Feed) Revoked(gs []firewall.Grant, reason string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range gs {
		h.ends.forget(g)
		h.spread(control.Decision{
			Time: now, Verdict: "revoked", Client: g.Client, Source: g.Source, Network: networkOf(g),
			Services: []string{g.Service}, Reason: reason,
		})
	}
}

// Closed forgets the ends of grants that their client closed: watchers see its packet instead.
func (h *Feed) Closed(gs []firewall.Grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range gs {
		h.ends.forget(g)
	}
}
