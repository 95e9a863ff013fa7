package firewall

import (
	"context"
	"net/netip"
	"strconv"
	"time"

	"sallyport/spa"
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
	// set gives each element the time that it has left, in one step, whatever it had
	// before: all or none. An element with no time left is gone. A full table is
	// ErrFull; no table is errGone.
	set(es []lease) error
	// carried returns the flows that the guard in place still carries, and how long.
	carried() ([]flow, time.Duration, error)
	// confirmed reports whether a new flow through a grant has begun since the load.
	confirmed() (bool, error)
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

// plan is a guard as it should be: what the configuration does not say.
type plan struct {
	leases  []lease
	confirm time.Duration // above zero: the guarded ports are guarded no longer than this
	carried []flow
	carry   time.Duration // how long flows are carried
}

// element is what a grant opens: one port for one address.
type element struct {
	source netip.Addr
	link   uint32     // the interface of a link-local source; 0 for others
	to     netip.Addr // the destination; invalid: this host
	proto  spa.Proto
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

// lease is an element and how long it lasts from now.
type lease struct {
	element
	left time.Duration
}

// flow is a flow to a guarded port, seen from this host.
type flow struct {
	proto         spa.Proto
	remote, local netip.AddrPort
}
