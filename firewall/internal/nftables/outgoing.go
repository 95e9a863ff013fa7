package nftables

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// reviveRules look at what leaves guarded ports of this host.
func (d *Draft) reviveRules() {
	o, c := &d.objects, d.revive
	// oif lo accept
	d.rule(c, toLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		// oifname NAME accept
		d.rule(c, ifname(expr.MetaKeyOIFNAME, name), Accept())
	}
	// meta l4proto . th sport @guarded jump begun
	d.rule(c, o.portIn(o.Guarded, Sport, false), jump(o.begun))
}

// begunRules decide about what leaves a guarded port. It goes if it belongs to a flow that the
// guard has admitted, or begins one: then the flow is marked, and only for that mark are its
// answers let in. All else is of a flow that came to be while the guard was away, or that ended
// with its grant. Where connection tracking has forgotten such a flow, what its UDP server goes
// on sending looks like a beginning; so it does not count as one towards whom a grant admitted.
func (d *Draft) begunRules() {
	o, c, mark := &d.objects, d.begun, d.spec.Mark
	f6 := o.families()[1]
	// ct state untracked return
	d.rule(c, CTState(expr.CtStateBitUNTRACKED), back())
	d.eachGrant(outward, func(f *family, granted Exprs) {
		// GRANTED update @met4 { ip daddr . meta l4proto . th sport timeout 7d } ct mark set ct mark or MARK return
		d.rule(c, granted, d.admit(f, outward), back())
	})
	for _, f := range o.families() {
		// ip daddr . ip saddr . meta l4proto . th dport . th sport @carried4 update @met4 ... return
		d.rule(c, f.carries(outward), d.admit(f, outward), back())
	}
	if len(d.spec.Cut) > 0 {
		// Hush sees another port where one leads to a target.
		// A reset tells the client that the session is over.
		// ct mark and MARK == MARK tcp flags and rst == rst return
		d.rule(c, ctMarked(mark), TCPFlags(Rst, Rst), back())
		for _, f := range o.families() {
			// meta l4proto . th sport @cut ip daddr . meta l4proto . th sport @met4 drop
			d.rule(c, o.portIn(o.cut, Sport, false), f.source(outward).in(f.met), Drop())
		}
	}
	// ct mark and MARK == MARK return
	d.rule(c, ctMarked(mark), back())
	if d.refuse == guard.Reject {
		// How strangers are rejected: in no flow, or in theirs.
		// ct state invalid tcp flags and (fin | syn | rst) == rst return
		d.rule(c, CTState(expr.CtStateBitINVALID), TCPFlags(Fin|Syn|Rst, Rst), back())
		// ct direction reply tcp flags and (fin | syn | rst) == rst return
		d.rule(c, IsReply(), TCPFlags(Fin|Syn|Rst, Rst), back())
	}
	for _, f := range o.families() {
		// ct direction reply meta l4proto udp update @met4 { ip daddr . meta l4proto . th sport timeout 7d } drop
		d.rule(c, IsReply(), L4Proto(service.UDP), f.source(outward).update(f.met), Drop())
		// meta l4proto udp ip daddr . meta l4proto . th sport @met4 update @met4 { ... } drop
		d.rule(c, L4Proto(service.UDP), f.source(outward).in(f.met), f.source(outward).update(f.met), Drop())
	}
	// Its answers come in by this link only.
	// ip6 daddr fe80::/10 ct state new update @linked { oif . ip6 daddr . meta l4proto . th sport timeout 7d }
	d.rule(c, f6.linkLocal(outward), CTState(expr.CtStateBitNEW), f6.linkAndSource(outward).update(o.linked))
	// ct direction original ct state new meta l4proto udp ct mark set ct mark or MARK return
	d.rule(c, isOriginal(), CTState(expr.CtStateBitNEW), L4Proto(service.UDP), setCtMark(mark), back())
	// ct direction original ct state new tcp flags and (fin | syn | rst | ack) == syn ct mark set ct mark or MARK return
	d.rule(c, isOriginal(), CTState(expr.CtStateBitNEW), TCPFlags(Fin|Syn|Rst|Ack, Syn), setCtMark(mark), back())
	// drop
	d.rule(c, Drop())
}

// passingRules look at what is forwarded to services at targets, and from them.
func (d *Draft) passingRules() {
	o, c := &d.objects, d.passing
	if d.claims {
		// A packet that closed has marked is for this host, whatever became of it since.
		// meta mark and MARK == MARK ct mark and MARK != MARK ct state new drop
		d.rule(c, marked(d.spec.Mark), ctNotMarked(d.spec.Mark), CTState(expr.CtStateBitNEW), Drop())
	}
	if len(d.spec.Targets) == 0 {
		return
	}
	for _, name := range d.spec.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), Accept())
		// oifname NAME accept
		d.rule(c, ifname(expr.MetaKeyOIFNAME, name), Accept())
	}
	for _, f := range o.families() {
		// ip daddr @addresses4 meta l4proto icmp ... jump quoted
		d.quotedJumps(c, f.toExtra(f.daddr))
		// What another table's DNAT leads there has not been at door.
		// ip saddr . ip daddr . meta l4proto . th dport @reach4 accept
		d.rule(c, f.sourceAndTarget(inward).in(f.reach), Accept())
		d.goesOn(c, f, f.target(inward).in(f.targets))
		// ip daddr . meta l4proto . th dport @targets4 drop
		d.rule(c, f.target(inward).in(f.targets), Drop())
	}
	// A new flow of the target's own came from where the routing has the target (guard), and leads
	// elsewhere. On a bridge it cannot be told from a stranger's packet that claims to be one.
	for _, f := range o.families() {
		own := f.target(outward).in(f.targets)
		unmarked := Rule(own, CTState(expr.CtStateBitNEW), ctNotMarked(d.spec.Mark))
		// ip saddr . meta l4proto . th sport @targets4 ct state new ct mark and MARK != MARK meta iifkind "bridge" meta
		// oifkind "bridge" drop
		d.rule(c, unmarked, linkKind(metaIIFKind, "bridge"), linkKind(metaOIFKind, "bridge"), Drop())
		// ip saddr . meta l4proto . th sport @targets4 jump begun
		d.rule(c, own, jump(o.begun))
	}
}

// hushRules look at what leaves after every translation: an answer that DNAT leads back has the
// port and the address that the grant is for, and a flow of a machine behind that is masqueraded
// has an address of this host's, and maybe a guarded port.
func (d *Draft) hushRules() {
	o, c := &d.objects, d.hush
	// oif lo accept
	d.rule(c, toLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		// oifname NAME accept
		d.rule(c, ifname(expr.MetaKeyOIFNAME, name), Accept())
	}
	// Too short to have ports, an answer of another protocol would be dropped as one.
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), Accept())
	// ct status snat,dnat meta l4proto . th sport @guarded fib saddr type local jump begun
	d.rule(c, ctStatusIs(statusSNAT|statusDNAT), o.portIn(o.Guarded, Sport, false), isType(fibSource(), unix.RTN_LOCAL),
		jump(o.begun))
	if len(d.spec.Cut) == 0 {
		return
	}
	// From a port whose sessions end with the grant nothing leaves to who has none.
	// meta l4proto . th sport != @cut accept
	d.rule(c, o.portIn(o.cut, Sport, true), Accept())
	for _, f := range o.families() {
		// ip saddr != @addresses4 fib saddr type != local accept
		d.rule(c, f.notExtra(f.saddr), isNoType(fibSource(), unix.RTN_LOCAL), Accept())
		// ip daddr . ip saddr . meta l4proto . th dport . th sport @carried4 accept
		d.rule(c, f.carries(outward), Accept())
	}
	d.eachGrant(outward, func(_ *family, granted Exprs) {
		// GRANTED accept
		d.rule(c, granted, Accept())
	})
	// A reset tells the client that the session is over, and is how strangers are rejected.
	// tcp flags and rst == rst accept
	d.rule(c, TCPFlags(Rst, Rst), Accept())
	// ct direction reply drop
	d.rule(c, IsReply(), Drop())
	for _, f := range o.families() {
		// A flow of the host's own goes on, but not to whom a grant admitted.
		// ct mark and MARK == MARK ip daddr . meta l4proto . th sport @met4 drop
		d.rule(c, ctMarked(d.spec.Mark), f.source(outward).in(f.met), Drop())
	}
}
