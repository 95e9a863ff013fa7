package nftables

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// reviveRules filter what leaves guarded ports of this host.
func (d *Draft) reviveRules() {
	o, c := &d.objects, d.revive
	d.rule(c, toLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, oifname(name), Accept())
	}
	d.rule(c, onPort(Sport).in(o.Guarded), jump(o.begun))
}

// begunRules decide on packets that leave a guarded port. A packet passes if it belongs to a flow that the guard has
// admitted, or begins one: then the flow is marked, and only by that mark are its replies let in. Any other packet
// belongs to a flow that began while the guard was away, or that ended with its grant. Once connection tracking has
// forgotten such a flow, the next datagram of its UDP server looks like the beginning of a new one; so towards a peer
// that a grant admitted, it does not count as one.
func (d *Draft) begunRules() {
	o, c, mark := &d.objects, d.begun, d.spec.Mark
	f6 := o.families()[1]
	d.rule(c, CTState(expr.CtStateBitUNTRACKED), back())
	d.onceOver(c, outward, Fin)
	d.onceOver(c, outward, Rst)
	if d.refuse == guard.Reject {
		// By resets the kernel rejects strangers, and clients whose grant has ended or has admitted its flow.
		d.rule(c, TCPFlags(Fin|Syn|Rst, Rst), back())
	}
	d.onceBegun()
	d.eachGrant(outward, func(f *family, granted Part) {
		d.rule(c, d.unlessOnce(Sport), granted, d.admit(f, outward), back())
	})
	for _, f := range o.families() {
		d.rule(c, f.carries(outward), d.admit(f, outward), back())
	}
	if len(d.spec.Cut) > 0 {
		// Resets pass: they report to the client that the session is over. hush sees another port if one leads to a
		// target.
		d.rule(c, ctMarked(mark), TCPFlags(Rst, Rst), back())
		for _, f := range o.families() {
			d.rule(c, onPort(Sport).in(o.cut), f.source(outward).in(f.met), Drop())
		}
		// Another tool may have deleted @met.
		for _, f := range o.families() {
			d.rule(c, onPort(Sport).in(o.cut), IsReply(), L4Proto(service.UDP), f.source(outward).update(f.met), Drop())
		}
		d.rule(c, onPort(Sport).in(o.cut), IsReply(), Drop())
	}
	d.rule(c, ctMarked(mark), back())
	for _, f := range o.families() {
		d.rule(c, IsReply(), L4Proto(service.UDP), f.source(outward).update(f.met), Drop())
		d.rule(c, L4Proto(service.UDP), f.source(outward).in(f.met), f.source(outward).update(f.met), Drop())
	}
	// Replies are accepted only on this link.
	d.rule(c, f6.linkLocal(outward), CTState(expr.CtStateBitNEW), f6.linkAndSource(outward).update(o.linked))
	d.rule(c, CTState(expr.CtStateBitNEW), L4Proto(service.UDP), setCtMark(mark), back())
	d.rule(c, CTState(expr.CtStateBitNEW), TCPFlags(Fin|Syn|Rst|Ack, Syn), setCtMark(mark), back())
	d.rule(c, Drop())
}

// passingRules filter what is forwarded to services at targets, and from them.
func (d *Draft) passingRules() {
	o, c := &d.objects, d.passing
	if d.claims {
		// A packet that closed has marked is for this host, whatever rewrote it since.
		d.rule(c, marked(d.spec.Mark), ctNotMarked(d.spec.Mark), CTState(expr.CtStateBitNEW), Drop())
	}
	if len(d.spec.Targets) == 0 {
		return
	}
	for _, name := range d.spec.Trusted {
		d.rule(c, iifname(name), Accept())
		d.rule(c, oifname(name), Accept())
	}
	d.ledAwayRules()
	for _, f := range o.families() {
		d.quotedJumps(c, f.toExtra(f.daddr))
		d.goesOn(c, f.target(inward).in(f.targets), f)
		// door has not seen what another table's DNAT leads there.
		d.carried(c, f, f.target(inward).in(f.targets))
		d.onceOrNothing(c, f.target(inward).in(f.targets), nil)
		d.rule(c, f.sourceAndTarget(inward).in(f.reach), Accept())
		for _, n := range d.spansOf(f) {
			d.rule(c, f.inNetworkThere(inward, n), Accept())
		}
		d.rule(c, f.target(inward).in(f.targets), Drop())
	}
	// A new flow from the target itself arrived by the interface that routing uses for the target (guard), and leaves
	// by another: otherwise a neighbor of the target could have forged it. No rule compares the two interfaces, so the
	// set does: an element with the outgoing one also matches the incoming one if they are the same. If the set is
	// full, nothing passes. After its route changes, a destination is refused for as long as the old element lasts.
	for _, f := range o.families() {
		own := f.target(outward).in(f.targets)
		d.rule(c, own, CTState(expr.CtStateBitNEW), f.leaving(outward).updateFor(f.away, guard.Away))
		d.rule(c, own, CTState(expr.CtStateBitNEW), f.leaving(inward).in(f.away), Drop())
		d.rule(c, own, CTState(expr.CtStateBitNEW), f.leaving(outward).notIn(f.away), Drop())
		d.rule(c, own, jump(o.begun))
	}
}

// hushRules filter what leaves after all translation: a reply that DNAT translated back has the port and the address
// of the grant, and a masqueraded flow from a machine behind this host has one of this host's addresses and perhaps a
// guarded port.
func (d *Draft) hushRules() {
	o, c := &d.objects, d.hush
	d.rule(c, toLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, oifname(name), Accept())
	}
	// A reply of another protocol may be too short to have ports, and would be dropped for that.
	d.rule(c, neitherTCPNorUDP(), Accept())
	d.rule(c, translated(), onPort(Sport).in(o.Guarded), isType(origin, unix.RTN_LOCAL),
		jump(o.begun))
	if len(d.spec.Cut) == 0 {
		return
	}
	// From a port whose sessions end with the grant, nothing leaves to a peer without one.
	d.rule(c, onPort(Sport).notIn(o.cut), Accept())
	for _, f := range o.families() {
		d.rule(c, f.notExtra(f.saddr), isNoType(origin, unix.RTN_LOCAL), Accept())
		d.rule(c, f.notExtra(f.saddr), onPort(Sport).notIn(o.Guarded), Accept()) // in @cut for a target alone
		d.rule(c, f.carries(outward), Accept())
	}
	d.eachGrant(outward, func(_ *family, granted Part) {
		d.rule(c, granted, Accept())
	})
	// Resets pass: they report to the client that the session is over, and are how strangers are rejected.
	d.rule(c, TCPFlags(Rst, Rst), Accept())
	d.rule(c, IsReply(), Drop())
	for _, f := range o.families() {
		// A flow of the host's own passes, except to a peer that a grant admitted.
		d.rule(c, ctMarked(d.spec.Mark), f.source(outward).in(f.met), Drop())
	}
}
