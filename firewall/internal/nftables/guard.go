package nftables

import (
	"fmt"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// addRules adds the chains, empties them, and fills them.
func (d *Draft) addRules(confirm bool) {
	d.emptyChains()
	d.receiptRules()
	d.refusedRules()
	d.closedRules()
	d.quotedRules()
	d.linkRules()
	d.confirmRules(confirm)
	d.endedRules()
	d.onceRules(confirm)
	d.begunRules()
	d.doorRules(confirm)
	d.claimRules()
	d.leadRules()
	d.maskRules()
	d.arriveRules()
	d.reviveRules()
	d.passingRules()
	d.hushRules()
	d.knockRules()
	d.guardRules()
}

// emptyChains adds the chains without rules.
func (d *Draft) emptyChains() {
	for _, c := range d.objects.Chains() {
		if d.needs(c) {
			d.batch.chain(c)
			d.batch.flushChain(c)
		}
	}
	for _, c := range d.stale {
		d.batch.flushChain(c)
		d.batch.deleteChain(c)
	}
}

// needs reports whether the guard needs a chain. Only a host that rejects or forwards needs chains of type nat.
func (d *Draft) needs(c *nft.Chain) bool {
	switch c {
	case d.Claim:
		return d.claims
	case d.lead:
		return len(d.legs) > 0
	case d.mask:
		return slices.ContainsFunc(d.legs, func(l guard.Leg) bool { return l.Masquerade })
	}
	return true
}

// rule adds a rule to a chain.
func (d *Draft) rule(c *nft.Chain, parts ...Part) {
	r := Rule(parts...)
	if err := d.batch.rule(c, r.Exprs); err != nil {
		d.err = fmt.Errorf("the rule %q of chain %s: %w", r.Text, c.Name, err)
	}
	d.printed[c] = append(d.printed[c], r.Text)
}

// knockRules keep knocks out of connection tracking and leave the rest to the host: it treats a knock like a datagram
// for any other closed port, so no scan can tell them apart. Dropping knocks here would also hide them from the
// sniffer on a bridge with br_netfilter, where prerouting comes before its socket. Anycast addresses count as well: a
// router has one in each of its IPv6 subnets.
func (d *Draft) knockRules() {
	c := d.knock
	for _, k := range d.spec.Knock {
		if k.Shared {
			continue
		}
		for _, ours := range ownTypes {
			d.rule(c, UDPPort(Dport, k.Port), isType(destination, ours), notrack())
		}
	}
}

// guardRules select what is for a guarded port, at any address of this host or at a target.
func (d *Draft) guardRules() {
	o, c := &d.objects, d.Guard
	// Loopback includes the host's own addresses.
	d.rule(c, fromLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, iifname(name), Accept())
	}
	// Only this host uses its addresses as a source; its own multicast loops back. The kernel checks that for IPv4,
	// but not on bridges.
	for _, ours := range ownTypes {
		d.rule(c, onPort(Sport).in(o.Guarded), isType(origin, ours), isNoType(destination, unix.RTN_BROADCAST,
			unix.RTN_MULTICAST), Drop())
	}
	if len(d.spec.Targets) > 0 {
		d.targetRules()
	}
	// DNAT may lead an error to another machine; then it quotes another port.
	d.quotedJumps(c, isType(destination, unix.RTN_LOCAL))
	// Check the protocol first: a packet of another protocol may be too short to have ports.
	d.rule(c, neitherTCPNorUDP(), Accept())
	// Clear our mark from new flows: a tool may set all bits, and a flow that connection tracking's helpers expect
	// inherits its parent's mark.
	d.rule(c, CTState(expr.CtStateBitNEW|expr.CtStateBitRELATED), ctMarked(d.spec.Mark), clearCtMark(d.spec.Mark))
	d.elsewhere()
	d.rule(c, enter(o.door))
}

// targetRules drop packets with a target's source address that arrive by another interface than the one routing uses
// for it.
func (d *Draft) targetRules() {
	for _, f := range d.objects.families() {
		d.rule(d.Guard, f.target(outward).in(f.targets),
			CTState(expr.CtStateBitINVALID|expr.CtStateBitNEW|expr.CtStateBitUNTRACKED), byAnotherWay(), Drop())
	}
}

// elsewhere accepts what is not for a guarded address or port. A packet too short to tell is not accepted.
func (d *Draft) elsewhere() {
	o, c := &d.objects, d.Guard
	for _, f := range o.families() {
		d.rule(c, f.target(inward).in(f.targets), enter(o.door))
	}
	// A guarded UDP port can be reached at addresses of all these types.
	d.rule(c, isNoType(destination, unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST), Accept())
	d.rule(c, onPort(Dport).notIn(o.Guarded), Accept())
}

// doorRules decide on packets for a guarded port.
func (d *Draft) doorRules(confirm bool) {
	o, c, mark := &d.objects, d.door, d.spec.Mark
	d.rule(c, o.families()[1].linkLocal(inward), jump(o.links))
	d.onceOver(c, inward, Rst)
	lasts := Part{}
	if len(d.spec.Cut) > 0 {
		lasts = onPort(Dport).notIn(o.cut)
	}
	// begun sets the mark when a flow that began here leaves. A bare SYN is not a reply, but connection tracking
	// takes it for one if the peer connects at the same time.
	d.rule(c, L4Proto(service.UDP), IsReply(), ctMarked(mark), Accept())
	d.rule(c, tcpFlagsNot(Syn|Ack, Syn), IsReply(), ctMarked(mark), Accept())

	// Flows that this guard admitted. The mark alone is not enough, because another tool may set it. The mark with
	// the state of TCP is not enough either: until a flow has ended on both sides, a bare SYN from its address and
	// port counts as established, yet opens a new connection. A session of a port in @cut ends with its grant.
	d.rule(c, lasts, L4Proto(service.UDP), CTState(expr.CtStateBitESTABLISHED), ctMarked(mark), Accept())
	d.rule(c, lasts, tcpFlagsNot(Syn|Ack, Syn), CTState(expr.CtStateBitESTABLISHED), ctMarked(mark), Accept())
	for _, f := range o.families() {
		d.carried(c, f, Part{})
	}
	d.onceOrNothing(c, Part{}, o.closed)
	if confirm {
		d.rule(c, jump(o.Confirm))
	}
	d.eachGrant(inward, func(f *family, granted Part) {
		d.rule(c, granted, d.admit(f, inward), Accept())
		// A flow that another table leaves untracked has no mark; the rule above ends at setting it.
		d.rule(c, granted, Accept())
	})
	d.rule(c, enter(o.closed))
}

// carried admits, under a condition, packets of flows that a first load carries.
func (d *Draft) carried(c *nft.Chain, f *family, condition Part) {
	d.rule(c, condition, TCPFlags(Syn, 0), f.carries(inward), d.admit(f, inward), Accept())
	d.rule(c, condition, L4Proto(service.UDP), f.carries(inward), d.admit(f, inward), Accept())
}

// admit remembers the admitted peer, and marks the flow.
func (d *Draft) admit(f *family, w heading) Part {
	return Rule(f.source(w).update(f.met), setCtMark(d.spec.Mark))
}

// eachGrant calls do with each condition under which a packet has a grant. Grants for this host do not apply to
// targets.
func (d *Draft) eachGrant(w heading, do func(*family, Part)) {
	o := &d.objects
	for _, f := range o.families() {
		here := Part{}
		if len(d.spec.Targets) > 0 {
			do(f, f.sourceAndTarget(w).in(f.reach))
			here = f.target(w).notIn(f.targets)
		}
		do(f, Rule(here, f.source(w).in(f.grants)))
		d.eachNetwork(f, w, here, do)
	}
	f := o.families()[1]
	here := Part{}
	if len(d.spec.Targets) > 0 {
		here = f.target(w).notIn(f.targets)
	}
	do(f, Rule(here, f.linkAndSource(w).in(o.near)))
}

// linkRules let a link-local source through to the rest of door only on a link where it has or had a grant:
// connection tracking does not distinguish links.
func (d *Draft) linkRules() {
	o, c := &d.objects, d.links
	f := o.families()[1]
	link := func() *key { return f.linkAndSource(inward) }
	d.rule(c, link().in(o.near), link().update(o.linked), back())
	d.rule(c, f.carries(inward), link().update(o.linked), back())
	d.rule(c, link().in(o.linked), link().update(o.linked), back())
	d.rule(c, enter(o.closed))
}

// confirmRules count packets that begin a flow from a granted source.
func (d *Draft) confirmRules(confirm bool) {
	if !confirm {
		return
	}
	c := d.Confirm
	d.eachGrant(inward, func(_ *family, granted Part) {
		d.rule(c, TCPFlags(Fin|Syn|Rst|Ack, Syn), granted, count())
		d.rule(c, L4Proto(service.UDP), CTState(expr.CtStateBitNEW), granted, count())
	})
}

// endedRules drop packets of flows that neither a grant nor a first load keeps open.
func (d *Draft) endedRules() {
	if len(d.spec.Cut) == 0 {
		return
	}
	c := d.Ended
	for _, f := range d.objects.families() {
		d.rule(c, f.carries(inward), back())
	}
	d.eachGrant(inward, func(f *family, granted Part) {
		d.rule(c, granted, f.source(inward).update(f.met), back())
	})
	d.rule(c, Drop())
}

// closedRules handle packets without a grant. If the host's other closed ports answer, these must give the same
// answer, byte for byte. So a new flow passes on, marked, to a port on which nothing can listen (claim), and the
// kernel itself refuses it.
func (d *Draft) closedRules() {
	c := d.objects.closed
	if d.refuse == guard.Reject {
		// The kernel does not answer link-layer broadcasts, so the connection tracking entry of such a packet would
		// stay, and lead the real client's SYN to port 0.
		d.rule(c, toOthers(), Drop())
		if d.claims {
			d.rule(c, CTState(expr.CtStateBitNEW), isType(destination, unix.RTN_LOCAL), setMark(d.spec.Mark), Accept())
		}
		for _, t := range []uint32{unix.RTN_LOCAL, unix.RTN_UNICAST} { // a broadcast gets no answer
			d.rule(c, isType(destination, t), enter(d.refused))
		}
	}
	d.rule(c, Drop())
}

// refusedRules refuse the packets from closed and arrive.
func (d *Draft) refusedRules() {
	c := d.refused
	if d.refuse != guard.Reject {
		d.rule(c, Drop())
		return
	}
	f6 := d.families()[1]
	// The kernel refuses IPv6 source routes with segments left before it looks at what follows them (RFC 5095), and
	// drops routes of types 3 and 4 unless the administrator enables them.
	d.rule(c, f6.match(), routeType(0), segmentsLeft(), Accept())
	for _, kind := range []byte{3, 4} {
		d.rule(c, f6.match(), routeType(kind), Drop())
	}
	d.rule(c, L4Proto(service.TCP), resetTCP())
	// The rest is UDP. IPv6 drops datagrams without a checksum (RFC 8200, 8.1), and so answers none.
	d.rule(c, f6.match(), withoutChecksum(), Drop())
	d.rule(c, unreachable())
}

// claimRules come before every other DNAT, and a flow has at most one DNAT, so what closed has marked stays at this
// host. TCP goes to port 0, where nothing listens, and the kernel's reset carries the original port. UDP stays where
// it is, for arrive to refuse.
func (d *Draft) claimRules() {
	if !d.claims {
		return
	}
	d.rule(d.Claim, marked(d.spec.Mark), L4Proto(service.TCP), toPort0())
	d.rule(d.Claim, marked(d.spec.Mark), L4Proto(service.UDP), toSamePort())
}

// arriveRules filter what is delivered to this host, after all rewriting by other tables: another port that leads to
// a guarded one does not bypass the guard, nor does an address that only routing makes the host's.
func (d *Draft) arriveRules() {
	o, c := &d.objects, d.arrive
	d.rule(c, fromLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, iifname(name), Accept())
	}
	d.quotedJumps(c, Part{})
	d.rule(c, neitherTCPNorUDP(), Accept())
	if d.claims {
		// Packets that closed has marked must never reach a listening socket, even if another table's NAT runs first.
		d.rule(c, marked(d.spec.Mark), ctNotMarked(d.spec.Mark), CTState(expr.CtStateBitNEW),
			hasPort(), enter(d.refused))
	}
	if !d.spec.TPROXY {
		d.handedRules()
	}
	d.ledHereRules()
	fs := o.families()
	d.goesOn(c, Part{}, fs[:]...)
	for _, f := range fs {
		d.carried(c, f, Part{})
	}
	d.onceOrNothing(c, onPort(Dport).in(o.Guarded), d.refused)
	d.eachGrant(inward, func(f *family, granted Part) {
		d.rule(c, granted, d.admit(f, inward), Accept())
		d.rule(c, granted, Accept())
	})
	d.rule(c, onPort(Dport).notIn(o.Guarded), Accept())
	d.rule(c, enter(d.refused))
}

// handedRules refuse packets that a TPROXY rule or a BPF program assigned to a socket: the socket may belong to a
// guarded port, and no match shows its port. TPROXY assigns only transparent sockets. The kernel also assigns a
// socket this early to packets of established TCP sessions, which pass, and of connected UDP sockets, which are
// rarely transparent.
func (d *Draft) handedRules() {
	handed := Rule(handed(), transparent(), enter(d.refused))
	d.rule(d.arrive, L4Proto(service.UDP), handed)
	// A bare SYN in any flow: an attacker can begin one with a packet that claims this host's address.
	d.rule(d.arrive, TCPFlags(Syn|Ack, Syn), handed)
	d.rule(d.arrive, CTState(expr.CtStateBitINVALID|expr.CtStateBitNEW), handed)
}

// goesOn accepts, under a condition, packets of flows that door has admitted. Without a grant, what comes to a port in
// @cut passes only if this host or the target began the flow: the mark outlives the guard, and @met does not.
func (d *Draft) goesOn(c *nft.Chain, condition Part, fs ...*family) {
	mark, lasts := d.spec.Mark, condition
	if len(d.spec.Cut) > 0 {
		// If the server spoke first in a session older than connection tracking, the flow counts as the server's.
		for _, f := range fs {
			d.rule(c, condition, onPort(Dport).in(d.cut), f.source(inward).in(f.met), jump(d.Ended))
		}
		d.rule(c, condition, L4Proto(service.UDP), IsReply(), ctMarked(mark), Accept())
		d.rule(c, condition, tcpFlagsNot(Syn|Ack, Syn), IsReply(), ctMarked(mark), Accept())
		lasts = Rule(condition, onPort(Dport).notIn(d.cut))
	}
	d.rule(c, lasts, L4Proto(service.UDP), ctMarked(mark), Accept())
	// A bare SYN begins a flow: it passes only if door has just marked it.
	d.rule(c, lasts, tcpFlagsNot(Syn|Ack, Syn), ctMarked(mark), Accept())
	d.rule(c, condition, CTState(expr.CtStateBitNEW), ctMarked(mark), Accept())
}

// receiptRules keep receipts out of connection tracking. On a port of our own everything that leaves is a receipt; on
// a shared port, only packets that the sender has marked.
func (d *Draft) receiptRules() {
	c := d.receipt
	for _, k := range d.spec.Knock {
		if k.Shared {
			d.rule(c, marked(d.spec.Mark), UDPPort(Sport, k.Port), notrack())
			continue
		}
		d.rule(c, UDPPort(Sport, k.Port), notrack())
	}
}
