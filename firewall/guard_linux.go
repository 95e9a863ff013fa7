package firewall

import (
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// remembered is how long the guard knows after the last packet that somebody was admitted by a
// grant. Within that time no UDP server here begins a flow with him, see begunRules.
const remembered = 7 * 24 * time.Hour

// addRules adds the chains and fills them, whatever was in them.
func (d *draft) addRules(confirm bool) {
	d.emptyChains()
	d.receiptRules()
	d.refusedRules()
	d.closedRules()
	d.quotedRules()
	d.linkRules()
	d.confirmRules(confirm)
	d.endedRules()
	d.begunRules()
	d.doorRules(confirm)
	d.claimRules()
	d.arriveRules()
	d.reviveRules()
	d.passingRules()
	d.hushRules()
	d.knockRules()
	d.guardRules()
}

// emptyChains adds the chains with nothing in them. Only a host that rejects needs a chain of
// type nat.
func (d *draft) emptyChains() {
	for _, c := range d.objects.chains() {
		if c == d.claim && !d.claims {
			continue
		}
		d.conn.AddChain(c)
		d.conn.FlushChain(c)
	}
}

func (d *draft) rule(c *nft.Chain, parts ...exprs) {
	d.conn.AddRule(&nft.Rule{Table: c.Table, Chain: c, Exprs: rule(parts...)})
}

// knockRules keep knocks out of connection tracking, and leave the rest to the host: what it does
// with a datagram for any other closed port it does with a knock, so no scan tells them apart.
// Dropping them here would also blind the sniffer on a bridge with br_netfilter, where prerouting
// comes before its socket. A router has the anycast address of each of its IPv6 subnets.
func (d *draft) knockRules() {
	c := d.knock
	for _, k := range d.spec.Knock {
		if k.Shared {
			continue
		}
		for _, ours := range ownTypes {
			// udp dport PORT fib daddr type local notrack
			// udp dport PORT fib daddr type anycast notrack
			d.rule(c, udpPort(dport, k.Port), isType(fib(), ours), exprs{&expr.Notrack{}})
		}
	}
}

// guardRules find what is for a guarded port, at any address of this host or at a target.
func (d *draft) guardRules() {
	o, c := &d.objects, d.guard
	// Loopback includes the host's own addresses.
	// iif lo accept
	d.rule(c, fromLoopback(), accept())
	for _, name := range d.spec.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), accept())
	}
	// Nobody else speaks for this host; its own multicast comes back to it. IPv4 has that check
	// for itself, but not on bridges.
	for _, ours := range ownTypes {
		// meta l4proto . th sport @guarded fib saddr type local fib daddr type != broadcast fib daddr type != multicast drop
		// ... fib saddr type anycast ... drop
		d.rule(c, o.portIn(o.guarded, sport, false), isType(fibSource(), ours), isNoType(fib(), unix.RTN_BROADCAST,
			unix.RTN_MULTICAST), drop())
	}
	if len(d.spec.Targets) > 0 {
		d.targetRules()
	}
	// DNAT may lead it on, and then it quotes another port.
	// fib daddr type local meta l4proto icmp ... jump quoted
	d.quotedJumps(c, isType(fib(), unix.RTN_LOCAL))
	// The protocol first: a packet of another one may be too short to have ports.
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), accept())
	// A new flow has our mark from nobody else: not from a tool that sets all bits, nor from the
	// flow in which connection tracking's helpers came to expect it.
	// ct state new,related ct direction original ct mark and MARK == MARK ct mark set ct mark and ~MARK
	d.rule(c, ctState(expr.CtStateBitNEW|expr.CtStateBitRELATED), isOriginal(),
		ctMarked(d.spec.Mark), clearCtMark(d.spec.Mark))
	d.elsewhere()
	// goto door
	d.rule(c, enter(o.door))
}

// targetRules drop what claims to come from a target but comes by another way than the routing has
// for it.
func (d *draft) targetRules() {
	for _, f := range d.objects.families() {
		// ip saddr . meta l4proto . th sport @targets4 ct state invalid,new,untracked fib saddr . iif oif missing drop
		d.rule(d.guard, f.target(outward).in(f.targets),
			ctState(expr.CtStateBitINVALID|expr.CtStateBitNEW|expr.CtStateBitUNTRACKED), exprs{
				&expr.Fib{Register: first, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}, equal(native(0)),
			}, drop())
	}
}

// elsewhere accepts what is for no guarded address, or for no guarded port. What cannot be read
// that far is accepted nowhere.
func (d *draft) elsewhere() {
	o, c := &d.objects, d.guard
	for _, f := range o.families() {
		// ip daddr . meta l4proto . th dport @targets4 goto door
		d.rule(c, f.target(inward).in(f.targets), enter(o.door))
	}
	// A guarded UDP port can be reached by any of these types.
	// fib daddr type != local fib daddr type != broadcast fib daddr type != anycast fib daddr type != multicast accept
	d.rule(c, isNoType(fib(), unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST), accept())
	// meta l4proto . th dport != @guarded accept
	d.rule(c, o.portIn(o.guarded, dport, true), accept())
}

// doorRules decide about what is for a guarded port.
func (d *draft) doorRules(confirm bool) {
	o, c, mark := &d.objects, d.door, d.spec.Mark
	// ip6 saddr fe80::/10 jump links
	d.rule(c, o.families()[1].linkLocal(inward), jump(o.links))
	lasts := exprs{}
	if len(d.spec.Cut) > 0 {
		lasts = o.portIn(o.cut, dport, true)
	}
	// The mark of a flow that began here was set when it left, by begun. A bare SYN is no reply, though
	// connection tracking takes it for one, of a peer that connects at the same time.
	// meta l4proto udp ct direction reply ct mark and MARK == MARK accept
	d.rule(c, l4proto(service.UDP), isReply(), ctMarked(mark), accept())
	// tcp flags and (syn | ack) != syn ct direction reply ct mark and MARK == MARK accept
	d.rule(c, tcpFlagsNot(syn|ack, syn), isReply(), ctMarked(mark), accept())

	// Flows that this guard admitted. The mark alone is not enough: another tool may set it.
	// Nor is it with the state of TCP: until a flow has ended on both sides, a bare SYN from
	// its address and port counts as a packet of it, and begins a new one all the same.
	// A session of a port in @cut ends with its grant.
	// [meta l4proto . th dport != @cut] meta l4proto udp ct state established ct mark and MARK == MARK accept
	d.rule(c, lasts, l4proto(service.UDP), ctState(expr.CtStateBitESTABLISHED), ctMarked(mark), accept())
	// [...] tcp flags and (syn | ack) != syn ct state established ct mark and MARK == MARK accept
	d.rule(c, lasts, tcpFlagsNot(syn|ack, syn), ctState(expr.CtStateBitESTABLISHED), ctMarked(mark), accept())
	for _, f := range o.families() {
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4
		// update @met4 { ip saddr . meta l4proto . th dport timeout 7d } ct mark set ct mark or MARK accept
		d.rule(c, tcpFlags(syn, 0), f.carries(inward), d.admit(f, inward), accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 update @met4 ... accept
		d.rule(c, l4proto(service.UDP), f.carries(inward), d.admit(f, inward), accept())
	}
	if confirm {
		// jump confirm
		d.rule(c, jump(o.confirm))
	}
	d.eachGrant(inward, func(f *family, granted exprs) {
		// GRANTED update @met4 { ip saddr . meta l4proto . th dport timeout 7d } ct mark set ct mark or MARK accept
		d.rule(c, granted, d.admit(f, inward), accept())
		// What another table leaves untracked has no mark, and ends the rule above before its accept.
		// GRANTED accept
		d.rule(c, granted, accept())
	})
	// goto closed
	d.rule(c, enter(o.closed))
}

// admit remembers who was admitted, and marks the flow.
func (d *draft) admit(f *family, w heading) exprs {
	return rule(f.source(w).update(f.met), setCtMark(d.spec.Mark))
}

// eachGrant calls do with each condition that a packet has a grant. Grants for this host do not
// count for what is a target.
func (d *draft) eachGrant(w heading, do func(*family, exprs)) {
	o := &d.objects
	for _, f := range o.families() {
		here := exprs{}
		if len(d.spec.Targets) > 0 {
			// ip saddr . ip daddr . meta l4proto . th dport @reach4
			do(f, f.sourceAndTarget(w).in(f.reach))
			here = f.target(w).notIn(f.targets)
		}
		// [ip daddr . meta l4proto . th dport != @targets4] ip saddr . meta l4proto . th dport @grants4
		do(f, rule(here, f.source(w).in(f.grants)))
	}
	f := o.families()[1]
	here := exprs{}
	if len(d.spec.Targets) > 0 {
		here = f.target(w).notIn(f.targets)
	}
	// [ip6 daddr . meta l4proto . th dport != @targets6] iif . ip6 saddr . meta l4proto . th dport @near
	do(f, rule(here, f.linkAndSource(w).in(o.near)))
}

// linkRules let a link-local source through to the rest of door only on a link on which it was
// granted something: connection tracking does not know links apart.
func (d *draft) linkRules() {
	o, c := &d.objects, d.links
	f := o.families()[1]
	link := func() *key { return f.linkAndSource(inward) }
	// iif . ip6 saddr . meta l4proto . th dport @near update @linked { iif . ip6 saddr . meta l4proto . th dport timeout
	// 7d } return
	d.rule(c, link().in(o.near), link().update(o.linked), back())
	// ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport @carried6 update @linked { ... } return
	d.rule(c, f.carries(inward), link().update(o.linked), back())
	// iif . ip6 saddr . meta l4proto . th dport @linked update @linked { ... } return
	d.rule(c, link().in(o.linked), link().update(o.linked), back())
	// goto closed
	d.rule(c, enter(o.closed))
}

// confirmRules count the packets that begin a flow of a granted source.
func (d *draft) confirmRules(confirm bool) {
	if !confirm {
		return
	}
	c := d.confirm
	d.eachGrant(inward, func(_ *family, granted exprs) {
		// tcp flags and (fin | syn | rst | ack) == syn GRANTED counter
		d.rule(c, tcpFlags(fin|syn|rst|ack, syn), granted, exprs{&expr.Counter{}})
		// meta l4proto udp ct state new GRANTED counter
		d.rule(c, l4proto(service.UDP), ctState(expr.CtStateBitNEW), granted, exprs{&expr.Counter{}})
	})
}

// endedRules drop what belongs to a flow that neither a grant nor a first load holds open.
func (d *draft) endedRules() {
	if len(d.spec.Cut) == 0 {
		return
	}
	c := d.ended
	for _, f := range d.objects.families() {
		// ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 return
		d.rule(c, f.carries(inward), back())
	}
	d.eachGrant(inward, func(f *family, granted exprs) {
		// GRANTED update @met4 { ... } return
		d.rule(c, granted, f.source(inward).update(f.met), back())
	})
	// drop
	d.rule(c, drop())
}

// closedRules are for everybody else. A host whose closed ports answer is to answer here too,
// byte for byte: so a new flow goes on, marked, to a port that nobody can listen on (claim), and
// the kernel itself refuses it.
func (d *draft) closedRules() {
	c := d.objects.closed
	if d.refuse == guard.Reject {
		// The kernel does not answer link-layer broadcasts, so the connection tracking entry of such a
		// packet would stay, and lead the real client's SYN to port 0.
		// meta pkttype != host drop
		d.rule(c, exprs{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: first}, &expr.Cmp{Op: expr.CmpOpNeq, Register: first,
			Data: []byte{unix.PACKET_HOST}}}, drop())
		if d.claims {
			// ct state new fib daddr type local meta mark set meta mark or MARK accept
			d.rule(c, ctState(expr.CtStateBitNEW), isType(fib(), unix.RTN_LOCAL), setMark(d.spec.Mark), accept())
		}
		for _, t := range []uint32{unix.RTN_LOCAL, unix.RTN_UNICAST} { // nobody answers a broadcast
			// fib daddr type local goto refused
			// fib daddr type unicast goto refused
			d.rule(c, isType(fib(), t), enter(d.refused))
		}
	}
	// drop
	d.rule(c, drop())
}

// refusedRules refuse what comes from closed, or is found by arrive.
func (d *draft) refusedRules() {
	c := d.refused
	if d.refuse == guard.Reject {
		f6 := d.families()[1]
		// The kernel refuses IPv6 source routes with segments left before it looks at what is behind
		// them (RFC 5095), and takes no routes of types 3 and 4 where the administrator does not ask for it.
		// meta nfproto ipv6 rt type 0 rt seg-left != 0 accept
		d.rule(c, f6.match(), route(routeType), exprs{equal([]byte{0})}, route(routeLeft),
			exprs{&expr.Cmp{Op: expr.CmpOpNeq, Register: first, Data: []byte{0}}}, accept())
		for _, kind := range []byte{3, 4} {
			// meta nfproto ipv6 rt type 3 drop
			// meta nfproto ipv6 rt type 4 drop
			d.rule(c, f6.match(), route(routeType), exprs{equal([]byte{kind})}, drop())
		}
		// meta l4proto tcp reject with tcp reset
		d.rule(c, resetTCP())
		// IPv6 takes no datagram without a checksum (RFC 8200, 8.1), and so answers none.
		// meta nfproto ipv6 meta l4proto udp @th,48,16 0 drop
		d.rule(c, f6.match(), l4proto(service.UDP), exprs{port(first, udpChecksum), equal([]byte{0, 0})}, drop())
		// meta l4proto udp reject with icmpx port-unreachable
		d.rule(c, l4proto(service.UDP), unreachable())
	}
	// drop
	d.rule(c, drop())
}

// claimRules come before every other DNAT, and a flow has one DNAT at the most: what closed has
// marked stays at this host. TCP goes to port 0, where nobody listens, and the kernel's reset has
// the port that was asked for. UDP stays where it is, for arrive to refuse.
func (d *draft) claimRules() {
	if !d.claims {
		return
	}
	dnat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_INET, RegProtoMin: first, Specified: true}
	// meta mark and MARK == MARK meta l4proto tcp dnat to :0
	d.rule(d.claim, marked(d.spec.Mark), l4proto(service.TCP), exprs{&expr.Immediate{Register: first, Data: []byte{0, 0}},
		dnat})
	// meta mark and MARK == MARK meta l4proto udp dnat to :udp dport
	d.rule(d.claim, marked(d.spec.Mark), l4proto(service.UDP), exprs{port(first, dport), dnat})
}

// arriveRules look at what is delivered to this host, after all that other tables have made of
// it: another port that leads to a guarded one is no way round, and neither is an address that
// only the routing knows to be the host's.
func (d *draft) arriveRules() {
	o, c := &d.objects, d.arrive
	// iif lo accept
	d.rule(c, fromLoopback(), accept())
	for _, name := range d.spec.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), accept())
	}
	d.quotedJumps(c, exprs{})
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), accept())
	if d.claims {
		// Packets that closed has marked must never reach a listening socket, even if another table's
		// NAT runs first.
		// meta mark and MARK == MARK ct mark and MARK != MARK ct state new th dport != 0 goto refused
		d.rule(c, marked(d.spec.Mark), ctNotMarked(d.spec.Mark), ctState(expr.CtStateBitNEW),
			exprs{port(first, dport), &expr.Cmp{Op: expr.CmpOpNeq, Register: first, Data: []byte{0, 0}}}, enter(d.refused))
	}
	if !d.spec.TPROXY {
		d.handedRules()
	}
	for _, f := range o.families() {
		d.goesOn(c, f, exprs{})
	}
	for _, f := range o.families() {
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 update @met4 ... accept
		d.rule(c, tcpFlags(syn, 0), f.carries(inward), d.admit(f, inward), accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 update @met4 ... accept
		d.rule(c, l4proto(service.UDP), f.carries(inward), d.admit(f, inward), accept())
	}
	d.eachGrant(inward, func(f *family, granted exprs) {
		// GRANTED update @met4 { ... } ct mark set ct mark or MARK accept
		d.rule(c, granted, d.admit(f, inward), accept())
		// GRANTED accept
		d.rule(c, granted, accept())
	})
	// meta l4proto . th dport != @guarded accept
	d.rule(c, o.portIn(o.guarded, dport, true), accept())
	// goto refused
	d.rule(c, enter(d.refused))
}

// handedRules refuse packets that a TPROXY rule or a BPF program assigned to a socket: the socket may
// belong to a guarded port, and no match shows its port. TPROXY assigns transparent sockets only. The
// kernel also assigns a socket this early to packets of established TCP sessions, which pass, and of
// connected UDP sockets, which are rarely transparent.
func (d *draft) handedRules() {
	handed := rule(handed(), transparent(), enter(d.refused))
	// meta l4proto udp meta skuid != 4294967295 socket transparent 1 goto refused
	d.rule(d.arrive, l4proto(service.UDP), handed)
	// A bare SYN in any flow: a stranger can begin one with a packet that claims this host's address.
	// tcp flags and (syn | ack) == syn meta skuid != 4294967295 socket transparent 1 goto refused
	d.rule(d.arrive, tcpFlags(syn|ack, syn), handed)
	// meta l4proto tcp ct state invalid,new meta skuid != 4294967295 socket transparent 1 goto refused
	d.rule(d.arrive, l4proto(service.TCP), ctState(expr.CtStateBitINVALID|expr.CtStateBitNEW), handed)
}

// goesOn accepts the packets of admitted flows behind door, under a condition.
func (d *draft) goesOn(c *nft.Chain, f *family, condition exprs) {
	if len(d.spec.Cut) > 0 {
		// A session that was there before connection tracking is the server's if that spoke first.
		// CONDITION meta l4proto . th dport @cut ip saddr . meta l4proto . th dport @met4 jump ended
		d.rule(c, condition, d.portIn(d.cut, dport, false), f.source(inward).in(f.met), jump(d.ended))
	}
	// CONDITION meta nfproto ipv4 meta l4proto udp ct mark and MARK == MARK accept
	d.rule(c, condition, f.match(), l4proto(service.UDP), ctMarked(d.spec.Mark), accept())
	// A bare SYN begins a flow: door has just marked it, or it is not admitted.
	// CONDITION meta nfproto ipv4 tcp flags and (syn | ack) != syn ct mark and MARK == MARK accept
	d.rule(c, condition, f.match(), tcpFlagsNot(syn|ack, syn), ctMarked(d.spec.Mark), accept())
	// CONDITION meta nfproto ipv4 meta l4proto tcp ct state new ct mark and MARK == MARK accept
	d.rule(c, condition, f.match(), l4proto(service.TCP), ctState(expr.CtStateBitNEW), ctMarked(d.spec.Mark), accept())
}

// receiptRules keep receipts out of connection tracking. On a port of our own everything
// that leaves is a receipt; on a shared one, what the sender has marked.
func (d *draft) receiptRules() {
	c := d.receipt
	for _, k := range d.spec.Knock {
		if k.Shared {
			// meta mark and MARK == MARK udp sport PORT notrack
			d.rule(c, marked(d.spec.Mark), udpPort(sport, k.Port), exprs{&expr.Notrack{}})
			continue
		}
		// udp sport PORT notrack
		d.rule(c, udpPort(sport, k.Port), exprs{&expr.Notrack{}})
	}
}
