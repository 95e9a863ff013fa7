package nftables

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// Connection tracking starts as soon as the kernel prepares a rule that uses it, before the rules are in force. If a
// server kept sending in a flow from the time without a guard, it would begin a flow in that moment, and the client's
// packets would count as replies. So if no rule of ours enables connection tracking yet, a guard without it goes
// first while the kernel prepares the full guard: it passes grants and carried flows, and drops everything else on
// guarded ports.

// Tracks reports whether a rule of our guard already enables connection tracking.
func (n *Backend) Tracks() bool {
	rules, err := n.Conn.GetRules(n.Objects.Table, n.Objects.Guard)
	if err != nil {
		_ = nl.Drain(n.Socket) // part of an answer may be left; the next request reports the error
		return false
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if _, ok := e.(*expr.Ct); ok {
				return true
			}
		}
	}
	return false
}

// BareRules adds the chains, empties them, and fills them with rules that do not use connection tracking.
func (d *Draft) BareRules() {
	d.claims, d.legs = false, nil // a chain of type nat would start connection tracking
	d.emptyChains()
	d.bareRevive()
	d.bareGuard()
}

// bareGuard filters what arrives: see guardRules.
func (d *Draft) bareGuard() {
	o, c := &d.objects, d.Guard
	d.rule(c, fromLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, iifname(name), Accept())
	}
	d.rule(c, neitherTCPNorUDP(), Accept())
	d.elsewhere()
	// Fragments are not reassembled yet, and only the first has the ports. The others may be for a port that is not
	// guarded, and are useless without the first.
	for _, f := range o.families() {
		d.rule(c, f.continues(), Accept())
	}
	d.rule(c, enter(d.door))

	c = d.door
	for _, f := range o.families() {
		d.rule(c, TCPFlags(Syn, 0), f.carries(inward), Accept())
		d.rule(c, L4Proto(service.UDP), f.carries(inward), Accept())
	}
	for _, f := range d.spec.Forwards {
		for _, p := range f.Ports { // not for a program here
			d.rule(c, onOnePort(p.Proto, Dport, p.Low), isType(destination, unix.RTN_LOCAL), Drop())
		}
	}
	d.eachGrant(inward, func(_ *family, granted Part) {
		d.rule(c, d.unlessOnce(Dport), granted, Accept())
	})
	d.rule(c, Drop())
}

// bareRevive filters what leaves guarded ports: see reviveRules.
func (d *Draft) bareRevive() {
	o, c := &d.objects, d.objects.revive
	d.rule(c, toLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, oifname(name), Accept())
	}
	d.rule(c, neitherTCPNorUDP(), Accept())
	d.rule(c, onPort(Sport).notIn(o.Guarded), Accept())
	for _, f := range o.families() {
		d.rule(c, f.carries(outward), Accept())
	}
	d.eachGrant(outward, func(_ *family, granted Part) {
		d.rule(c, granted, Accept())
	})
	d.rule(c, Drop())
}
