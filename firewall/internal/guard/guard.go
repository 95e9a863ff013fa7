// package guard has the words that the firewall and its backends share: what a grant opens, when it ends, which
// flows go on, and the errors of a backend.
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
	// ErrGone is returned where there is no guard to change.
	ErrGone = errors.New("the guard is not in place")
	// ErrFull is returned where the table has no room for another grant.
	ErrFull = errors.New("the grant table is full")
	// ErrForeign is returned where there is a table of our name that is not ours.
	ErrForeign = errors.New(`there is a table "inet spa" that is not ours; rename it, or remove it with: ` +
		`nft delete table inet spa`)
)

// Plan says which flows and grants the guard admits, and until when. The kernel counts down from the moment in
// which it is told, so a plan has the times at which things end, and At computes what is left of them as late as
// possible.
type Plan struct {
	Leases    []Lease
	ConfirmBy time.Time // the guarded ports are guarded no longer; zero: for ever
	Carried   []Carried

	Confirm time.Duration // what is left until then: see At
}

// Carried is a flow that a load carries over, and how long it has to send something.
type Carried struct {
	Flow
	Until time.Time
	Left  time.Duration // until then: see Plan.At
}

// At returns the plan with what is left of its times at now.
func (p Plan) At(now time.Time) Plan {
	if !p.ConfirmBy.IsZero() {
		p.Confirm = max(time.Millisecond, Left(p.ConfirmBy, now)) // zero would be for ever
	}
	p.Carried = slices.Clone(p.Carried)
	for i := range p.Carried {
		p.Carried[i].Left = Left(p.Carried[i].Until, now)
	}
	p.Carried = slices.DeleteFunc(p.Carried, func(c Carried) bool { return c.Left <= 0 })
	p.Leases = slices.DeleteFunc(Timed(p.Leases, now), func(l Lease) bool { return l.Left <= 0 })
	return p
}

// Element is what a grant opens: one port for one address.
type Element struct {
	Source netip.Addr
	Link   uint32     // the interface of a link-local source; 0 for others
	To     netip.Addr // the destination; invalid: this host
	Proto  service.Proto
	Port   uint16
}

// LinkLocal reports whether an address means another machine on every link (RFC 4291 2.5.6,
// RFC 3927).
func LinkLocal(a netip.Addr) bool { return a.Unmap().IsLinkLocalUnicast() }

// LinkOf is the index that a link-local source has as its zone; 0: there is none.
func LinkOf(a netip.Addr) uint32 {
	index, err := strconv.ParseUint(a.Zone(), 10, 31)
	if err != nil || !LinkLocal(a) {
		return 0
	}
	return uint32(index)
}

// Normal is the address as the kernel's sets have it.
func Normal(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// OnLink is the address with its zone.
func OnLink(a netip.Addr, link uint32) netip.Addr {
	if link == 0 {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(link), 10))
}

// Lease is an element and when it ends.
type Lease struct {
	Element
	Until time.Time
	Left  time.Duration // until then: see Timed
}

// Timed returns the leases with what is left of them at now.
func Timed(ls []Lease, now time.Time) []Lease {
	ls = slices.Clone(ls)
	for i := range ls {
		ls[i].Left = Left(ls[i].Until, now)
	}
	return ls
}

// Left returns how long it is from now until then, by the wall clock or by the monotonic
// one, whichever says less. The latter, as the kernel's timeouts, stands still while the
// machine sleeps or is paused; the former can be set back.
func Left(until, now time.Time) time.Duration {
	return min(until.Sub(now), until.Round(0).Sub(now.Round(0)))
}

// Flow is a flow to a guarded port, seen from this host.
type Flow struct {
	Proto         service.Proto
	Remote, Local netip.AddrPort
}

// Contains reports whether one of the ranges has the port.
func Contains(ports []service.Ports, proto service.Proto, port uint16) bool {
	return slices.ContainsFunc(ports, func(p service.Ports) bool { return p.Contains(proto, port) })
}

// ComparePorts orders ranges.
func ComparePorts(a, b service.Ports) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low), cmp.Compare(a.High, b.High))
}

// CheckPorts returns an error for a range that cannot be guarded.
func CheckPorts(p service.Ports) error {
	if (p.Proto != service.TCP && p.Proto != service.UDP) || p.Low == 0 || p.Low > p.High {
		return fmt.Errorf("ports %v are not a range of TCP or UDP ports", p)
	}
	return nil
}
