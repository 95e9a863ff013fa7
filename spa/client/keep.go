package client

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"time"

	"sallyport/keys"
	"sallyport/spa"
)

const (
	usualGrant  = 30 * time.Second       // assumed if a grant's duration is unknown
	leastPause  = 500 * time.Millisecond // between two rounds, however short the grants are
	firstPause  = time.Second            // after a failed round; doubled each time
	lastPause   = 30 * time.Second
	lookAgain   = 5 * time.Second        // how often to check the clock: timers stop while a machine sleeps
	settleAfter = 200 * time.Millisecond // a network changes in several steps
)

// Cause is why a round of Keep began.
type Cause uint8

// The causes.
const (
	First Cause = iota
	Due         // a grant would end soon
	Moved       // this machine's address has changed
	Again       // the previous round failed
)

// Round is one knock of Keep.
type Round struct {
	Cause   Cause
	Plan    *Plan // nil if Prepare failed
	Answers []Answer
	Err     error         // as Open returns it
	Next    time.Duration // until the next round, unless this machine's address changes earlier; 0: there is none
}

// Keep opens a command's services and keeps them open: it knocks again when two thirds of the shortest grant have
// passed and when this machine's address changes, and retries at growing intervals after a failure. It ends with ctx,
// with the loop, and with a refusal that waiting does not change. The last grants then end on time.
//
// Each round is a new request, with the addresses looked up again.
func Keep(ctx context.Context, p *keys.Profile, c Command) iter.Seq[Round] {
	return keep(ctx, p, c, system{})
}

// keep is Keep on a given network.
func keep(ctx context.Context, p *keys.Profile, c Command, n network) iter.Seq[Round] {
	c.Type = spa.TypeOpen
	return func(yield func(Round) bool) {
		changes, stop := n.Changes()
		defer stop()
		failures := 0
		own := &whereabouts{net: n, to: anywhere()}
		for cause := First; ; {
			r := Round{Cause: cause}
			r.run(ctx, p, c, own)
			failures++
			if r.Err == nil {
				failures = 0
			}
			r.Next = r.pause(c, failures)
			if ctx.Err() != nil || !yield(r) || r.Next == 0 {
				return
			}
			var ok bool
			if cause, ok = own.wait(ctx, r.Next, changes); !ok {
				return
			}
			if cause == Due && failures > 0 {
				cause = Again
			}
		}
	}
}

// run knocks once, and records where this machine was then. If there is no route to the gateway, or its name does not
// resolve, it uses the addresses from before.
func (r *Round) run(ctx context.Context, p *keys.Profile, c Command, w *whereabouts) {
	w.look(w.to)
	if p.Recovery {
		r.Err = &CommandError{errors.New("a recovery key is not used to renew: each renewal would be one of its few uses")}
		return
	}
	if r.Plan, r.Err = prepare(ctx, p, c, w.net); r.Err != nil {
		return
	}
	w.look(r.Plan.gateways)
	for answer := range r.Plan.Knock(ctx) {
		r.Answers = append(r.Answers, answer)
	}
	r.Err = r.Plan.failure(r.Answers)
}

// pause returns how long to wait for the next round, or 0 if there is none.
func (r *Round) pause(c Command, failures int) time.Duration {
	var refused *RefusedError
	var impossible *CommandError
	if errors.As(r.Err, &impossible) || errors.As(r.Err, &refused) && final(refused.Status) {
		return 0
	}
	if r.Err != nil {
		return min(lastPause, firstPause<<min(failures-1, 10))
	}
	return max(leastPause, r.shortest(c)*2/3)
}

// shortest returns the duration of the shortest grant.
func (r *Round) shortest(c Command) time.Duration {
	var shortest time.Duration
	for _, a := range r.Answers {
		if a.Receipt == nil {
			continue
		}
		for _, s := range a.Receipt.Services {
			if shortest == 0 || s.For < shortest {
				shortest = s.For
			}
		}
	}
	if shortest == 0 {
		shortest = c.For
	}
	if shortest == 0 {
		shortest = usualGrant
	}
	return shortest
}

// final reports whether waiting does not change a refusal.
func final(s spa.Status) bool {
	switch s {
	case spa.ReasonTooManyGrants, spa.ReasonTooManyPerHour, spa.ReasonTooManyPorts, spa.ReasonNotNow, spa.ReasonFailed,
		spa.ReasonNetwork: // which is around another address than this machine has now
		return false
	}
	return true
}

// whereabouts are the addresses from which packets to a gateway leave.
type whereabouts struct {
	net  network
	to   []netip.AddrPort
	from []netip.Addr // the zero Addr: there was no route
}

// anywhere returns addresses that no host has (RFC 5737, RFC 3849): a route to them shows that there is a network,
// while the gateway's address is unknown. Nothing is sent there.
func anywhere() []netip.AddrPort {
	return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("[2001:db8::1]:9")}
}

// look records the addresses for all of some gateways, including unreachable ones.
func (w *whereabouts) look(to []netip.AddrPort) {
	w.to = to
	w.from = w.now()
}

func (w *whereabouts) now() []netip.Addr {
	from := make([]netip.Addr, len(w.to))
	for i, to := range w.to {
		from[i], _ = w.net.Local(to) // no route is a place too
	}
	return from
}

// moved reports whether there is an address that was not there before.
func (w *whereabouts) moved() bool {
	for i, now := range w.now() {
		if now.IsValid() && now != w.from[i] {
			return true
		}
	}
	return false
}

// wait returns when the next round is due or the machine has moved, and why. It returns false when ctx ends.
func (w *whereabouts) wait(ctx context.Context, d time.Duration, changes <-chan struct{}) (Cause, bool) {
	due := time.Now().Add(d)
	for {
		// By the monotonic clock, which stops during sleep, and by the wall clock.
		left := min(time.Until(due), due.Round(0).Sub(time.Now().Round(0)))
		if left <= 0 {
			return Due, true
		}
		timer := time.NewTimer(min(left, lookAgain))
		select {
		case <-ctx.Done():
			timer.Stop()
			return 0, false
		case <-timer.C:
		case <-changes:
			timer.Stop()
			pause(ctx, settleAfter)
			if ctx.Err() == nil && w.moved() {
				return Moved, true
			}
		}
	}
}
