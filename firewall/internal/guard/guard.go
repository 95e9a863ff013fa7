// Package guard holds the types that the firewall and its backends share: the settings of a guard, what a grant opens
// and when it ends, the flows that a load carries, and the errors of a backend.
package guard

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"sallyport/keys/service"
)

// Errors of backends.
var (
	// ErrGone is returned when there is no guard to change.
	ErrGone = errors.New("the guard is not in place")
	// ErrFull is returned when the table has no room for another grant.
	ErrFull = errors.New("the grant table is full")
	// ErrForeign is returned when a table of our name exists that is not ours.
	ErrForeign = errors.New(`a table "inet spa" exists that is not ours; rename it, or remove it with: ` +
		`nft delete table inet spa`)
)

// Plan lists the flows and grants that the guard admits, and when each ends. The kernel counts timeouts from the
// moment it receives them, so a plan holds times, and At computes the time left as late as possible.
type Plan struct {
	Leases    []Lease
	Spend     bool      // grants of ports of Spec.Once have admitted their flow, or may have
	ConfirmBy time.Time // when the guarded ports open again; zero: never
	Carried   []Carried

	Confirm time.Duration // time left until ConfirmBy: see At
}

// Carried is a flow that a load carries over, and until when it may send its next packet.
type Carried struct {
	Flow
	Until     time.Time
	Remaining time.Duration // time left until then: see Plan.At
}

// At returns the plan with the times left at now.
func (p Plan) At(now time.Time) Plan {
	if !p.ConfirmBy.IsZero() {
		p.Confirm = max(time.Millisecond, Remaining(p.ConfirmBy, now)) // zero would mean for ever
	}
	p.Carried = slices.Clone(p.Carried)
	for i := range p.Carried {
		p.Carried[i].Remaining = Remaining(p.Carried[i].Until, now)
	}
	p.Carried = slices.DeleteFunc(p.Carried, func(c Carried) bool { return c.Remaining <= 0 })
	p.Leases = slices.DeleteFunc(Timed(p.Leases, now), func(l Lease) bool { return l.Remaining <= 0 })
	return p
}

// Element is what a grant opens: one port for one address or network.
type Element struct {
	Source netip.Addr // of a network, the first address
	Bits   uint8      // the length of the network's prefix; 0: Source alone
	Link   uint32     // the interface of a link-local source; 0 for others
	To     netip.Addr // the destination; invalid: this host
	Proto  service.Proto
	Port   uint16
}

// LinkLocal reports whether an address means a different machine on each link (RFC 4291 2.5.6, RFC 3927).
func LinkLocal(a netip.Addr) bool { return a.Unmap().IsLinkLocalUnicast() }

// LinkOf returns the interface index that a link-local source has as its zone; 0: none.
func LinkOf(a netip.Addr) uint32 {
	index, err := strconv.ParseUint(a.Zone(), 10, 31)
	if err != nil || !LinkLocal(a) {
		return 0
	}
	return uint32(index)
}

// Normal returns the address as it stands in the kernel's sets.
func Normal(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// OnLink returns the address with the link as its zone.
func OnLink(a netip.Addr, link uint32) netip.Addr {
	if link == 0 {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(link), 10))
}

// Lease is an element and its end.
type Lease struct {
	Element
	Until     time.Time
	Remaining time.Duration // time left until then: see Timed
	Was       time.Time     // when it ended before the change: with this Set costs less; zero: it was not there, or ended
	Turn      Turn
	Besides   time.Time // with NewTurn: until when the flow of another grant may come as well; zero: there is none
}

// Timed returns the leases with the time left at now.
func Timed(ls []Lease, now time.Time) []Lease {
	ls = slices.Clone(ls)
	for i := range ls {
		ls[i].Remaining = Remaining(ls[i].Until, now)
	}
	return ls
}

// Fresh reports whether the element was not there before.
func (l *Lease) Fresh() bool { return l.Was.IsZero() }

// Remaining returns the time from now until then by the wall clock or by the monotonic clock, whichever gives less. The
// monotonic clock, like the kernel's timeouts, stops while the machine sleeps or is paused; the wall clock can be set
// back.
func Remaining(until, now time.Time) time.Duration {
	return min(until.Sub(now), until.Round(0).Sub(now.Round(0)))
}

// Flow is a flow to a guarded port, seen from this host.
type Flow struct {
	Proto         service.Proto
	Remote, Local netip.AddrPort
}

// ComparePorts orders ranges.
func ComparePorts(a, b service.Ports) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low), cmp.Compare(a.High, b.High))
}

// CheckPorts returns an error for a range that cannot be guarded.
func CheckPorts(p service.Ports) error {
	if (p.Proto != service.TCP && p.Proto != service.UDP) || p.Low == 0 || p.Low > p.High {
		return fmt.Errorf("%v is not a range of TCP or UDP ports", p)
	}
	return nil
}
