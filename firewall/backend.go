package firewall

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"sallyport/keys/service"
)

// backend is what enforces grants. One goroutine at a time calls it, except for watch. It
// reads the Config that it was made with anew at each load: between two of them it may have
// changed in the fields that Reconfigure can change.
type backend interface {
	// name is the backend's constant.
	name() string
	// persists reports whether the guard outlives a foreign flush while no daemon runs.
	persists() bool
	// describe says in a sentence what enforces, and what is lacking.
	describe() string
	// load makes the guard what p says, in one step: either all of it or nothing
	// changes. Guarded ports are shut throughout. A table that is not ours is
	// ErrForeign.
	load(p plan) error
	// set makes each element end when its lease says, in one step, whatever it had
	// before: all or none. An element whose end has passed is gone. A full table is
	// ErrFull; no table is errGone.
	set(es []lease) error
	// carried returns the flows that the guard in place still carries, and what is left of each.
	carried() ([]carriedFlow, error)
	// entered reports whether a new flow through a grant has begun since the load.
	entered() (bool, error)
	// permanent takes the timeouts off the guarded ports.
	permanent() error
	// remove takes the guard away; none in place is no error.
	remove() error
	// watch blocks until another tool has changed the guard, the deadline (zero: none)
	// passes, which is os.ErrDeadlineExceeded, or ctx ends.
	watch(ctx context.Context, deadline time.Time) error
	close() error
	// processes are those that work for the backend and live.
	processes() []Process
}

// plan is a guard as it should be: what the configuration does not say. The kernel counts
// down from the moment in which it is told, so a plan has the times at which things end, and
// at computes what is left of them as late as possible.
type plan struct {
	leases    []lease
	confirmBy time.Time // the guarded ports are guarded no longer; zero: for ever
	carried   []carriedFlow

	confirm time.Duration // what is left until then: see at
}

// carriedFlow is a flow that a load carries over, and how long it has to send something.
type carriedFlow struct {
	flow
	until time.Time
	left  time.Duration // until then: see plan.at
}

// at returns the plan with what is left of its times at now.
func (p plan) at(now time.Time) plan {
	if !p.confirmBy.IsZero() {
		p.confirm = max(time.Millisecond, left(p.confirmBy, now)) // zero would be for ever
	}
	p.carried = slices.Clone(p.carried)
	for i := range p.carried {
		p.carried[i].left = left(p.carried[i].until, now)
	}
	p.carried = slices.DeleteFunc(p.carried, func(c carriedFlow) bool { return c.left <= 0 })
	p.leases = slices.DeleteFunc(timed(p.leases, now), func(l lease) bool { return l.left <= 0 })
	return p
}

// element is what a grant opens: one port for one address.
type element struct {
	source netip.Addr
	link   uint32     // the interface of a link-local source; 0 for others
	to     netip.Addr // the destination; invalid: this host
	proto  service.Proto
	port   uint16
}

// linkLocal reports whether an address means another machine on every link (RFC 4291 2.5.6,
// RFC 3927).
func linkLocal(a netip.Addr) bool { return a.Unmap().IsLinkLocalUnicast() }

// linkOf is the index that a link-local source has as its zone; 0: there is none.
func linkOf(a netip.Addr) uint32 {
	index, err := strconv.ParseUint(a.Zone(), 10, 31)
	if err != nil || !linkLocal(a) {
		return 0
	}
	return uint32(index)
}

// onLink is the address with its zone.
func onLink(a netip.Addr, link uint32) netip.Addr {
	if link == 0 {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(link), 10))
}

// lease is an element and when it ends.
type lease struct {
	element
	until time.Time
	left  time.Duration // until then: see timed
}

// timed returns the leases with what is left of them at now.
func timed(ls []lease, now time.Time) []lease {
	ls = slices.Clone(ls)
	for i := range ls {
		ls[i].left = left(ls[i].until, now)
	}
	return ls
}

// left returns how long it is from now until then, by the wall clock or by the monotonic
// one, whichever says less. The latter, as the kernel's timeouts, stands still while the
// machine sleeps or is paused; the former can be set back.
func left(until, now time.Time) time.Duration {
	return min(until.Sub(now), until.Round(0).Sub(now.Round(0)))
}

// flow is a flow to a guarded port, seen from this host.
type flow struct {
	proto         service.Proto
	remote, local netip.AddrPort
}
