package nftables

import (
	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// addRules adds the chains and fills them, whatever was in them.
func (d *Draft) addRules(confirm bool) {
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
func (d *Draft) emptyChains() {
	for _, c := range d.objects.Chains() {
		if c == d.Claim && !d.claims {
			continue
		}
		d.conn.AddChain(c)
		d.conn.FlushChain(c)
	}
}

func (d *Draft) rule(c *nft.Chain, parts ...Exprs) {
	d.conn.AddRule(&nft.Rule{Table: c.Table, Chain: c, Exprs: Rule(parts...)})
}

// knockRules keep knocks out of connection tracking, and leave the rest to the host: what it does
// with a datagram for any other closed port it does with a knock, so no scan tells them apart.
// Dropping them here would also blind the sniffer on a bridge with br_netfilter, where prerouting
// comes before its socket. A router has the anycast address of each of its IPv6 subnets.
func (d *Draft) knockRules() {
	c := d.knock
	for _, k := range d.spec.Knock {
		if k.Shared {
			continue
		}
		for _, ours := range ownTypes {
			// udp dport PORT fib daddr type local notrack
			// udp dport PORT fib daddr type anycast notrack
			d.rule(c, UDPPort(Dport, k.Port), isType(fib(), ours), Exprs{&expr.Notrack{}})
		}
	}
}

// guardRules find what is for a guarded port, at any address of this host or at a target.
func (d *Draft) guardRules() {
	o, c := &d.objects, d.Guard
	// Loopback includes the host's own addresses.
	// iif lo accept
	d.rule(c, fromLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), Accept())
	}
	// Nobody else speaks for this host; its own multicast comes back to it. IPv4 has that check
	// for itself, but not on bridges.
	for _, ours := range ownTypes {
		// meta l4proto . th sport @guarded fib saddr type local fib daddr type != broadcast fib daddr type != multicast drop
		// ... fib saddr type anycast ... drop
		d.rule(c, o.portIn(o.Guarded, Sport, false), isType(fibSource(), ours), isNoType(fib(), unix.RTN_BROADCAST,
			unix.RTN_MULTICAST), Drop())
	}
	if len(d.spec.Targets) > 0 {
		d.targetRules()
	}
	// DNAT may lead it on, and then it quotes another port.
	// fib daddr type local meta l4proto icmp ... jump quoted
	d.quotedJumps(c, isType(fib(), unix.RTN_LOCAL))
	// The protocol first: a packet of another one may be too short to have ports.
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), Accept())
	// A new flow has our mark from nobody else: not from a tool that sets all bits, nor from the
	// flow in which connection tracking's helpers came to expect it.
	// ct state new,related ct direction original ct mark and MARK == MARK ct mark set ct mark and ~MARK
	d.rule(c, CTState(expr.CtStateBitNEW|expr.CtStateBitRELATED), isOriginal(),
		ctMarked(d.spec.Mark), clearCtMark(d.spec.Mark))
	d.elsewhere()
	// goto door
	d.rule(c, enter(o.door))
}

// targetRules drop what claims to come from a target but comes by another way than the routing has
// for it.
func (d *Draft) targetRules() {
	for _, f := range d.objects.families() {
		// ip saddr . meta l4proto . th sport @targets4 ct state invalid,new,untracked fib saddr . iif oif missing drop
		d.rule(d.Guard, f.target(outward).in(f.targets),
			CTState(expr.CtStateBitINVALID|expr.CtStateBitNEW|expr.CtStateBitUNTRACKED), Exprs{
				&expr.Fib{Register: Register, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}, Equal(Native(0)),
			}, Drop())
	}
}

// elsewhere accepts what is for no guarded address, or for no guarded port. What cannot be read
// that far is accepted nowhere.
func (d *Draft) elsewhere() {
	o, c := &d.objects, d.Guard
	for _, f := range o.families() {
		// ip daddr . meta l4proto . th dport @targets4 goto door
		d.rule(c, f.target(inward).in(f.targets), enter(o.door))
	}
	// A guarded UDP port can be reached by any of these types.
	// fib daddr type != local fib daddr type != broadcast fib daddr type != anycast fib daddr type != multicast accept
	d.rule(c, isNoType(fib(), unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST), Accept())
	// meta l4proto . th dport != @guarded accept
	d.rule(c, o.portIn(o.Guarded, Dport, true), Accept())
}

// doorRules decide about what is for a guarded port.
func (d *Draft) doorRules(confirm bool) {
	o, c, mark := &d.objects, d.door, d.spec.Mark
	// ip6 saddr fe80::/10 jump links
	d.rule(c, o.families()[1].linkLocal(inward), jump(o.links))
	lasts := Exprs{}
	if len(d.spec.Cut) > 0 {
		lasts = o.portIn(o.cut, Dport, true)
	}
	// The mark of a flow that began here was set when it left, by begun. A bare SYN is no reply, though
	// connection tracking takes it for one, of a peer that connects at the same time.
	// meta l4proto udp ct direction reply ct mark and MARK == MARK accept
	d.rule(c, L4Proto(service.UDP), IsReply(), ctMarked(mark), Accept())
	// tcp flags and (syn | ack) != syn ct direction reply ct mark and MARK == MARK accept
	d.rule(c, tcpFlagsNot(Syn|Ack, Syn), IsReply(), ctMarked(mark), Accept())

	// Flows that this guard admitted. The mark alone is not enough: another tool may set it.
	// Nor is it with the state of TCP: until a flow has ended on both sides, a bare SYN from
	// its address and port counts as a packet of it, and begins a new one all the same.
	// A session of a port in @cut ends with its grant.
	// [meta l4proto . th dport != @cut] meta l4proto udp ct state established ct mark and MARK == MARK accept
	d.rule(c, lasts, L4Proto(service.UDP), CTState(expr.CtStateBitESTABLISHED), ctMarked(mark), Accept())
	// [...] tcp flags and (syn | ack) != syn ct state established ct mark and MARK == MARK accept
	d.rule(c, lasts, tcpFlagsNot(Syn|Ack, Syn), CTState(expr.CtStateBitESTABLISHED), ctMarked(mark), Accept())
	for _, f := range o.families() {
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4
		// update @met4 { ip saddr . meta l4proto . th dport timeout 7d } ct mark set ct mark or MARK accept
		d.rule(c, TCPFlags(Syn, 0), f.carries(inward), d.admit(f, inward), Accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 update @met4 ... accept
		d.rule(c, L4Proto(service.UDP), f.carries(inward), d.admit(f, inward), Accept())
	}
	if confirm {
		// jump confirm
		d.rule(c, jump(o.Confirm))
	}
	d.eachGrant(inward, func(f *family, granted Exprs) {
		// GRANTED update @met4 { ip saddr . meta l4proto . th dport timeout 7d } ct mark set ct mark or MARK accept
		d.rule(c, granted, d.admit(f, inward), Accept())
		// What another table leaves untracked has no mark, and ends the rule above before its accept.
		// GRANTED accept
		d.rule(c, granted, Accept())
	})
	// goto closed
	d.rule(c, enter(o.closed))
}

// admit remembers who was admitted, and marks the flow.
func (d *Draft) admit(f *family, w heading) Exprs {
	return Rule(f.source(w).update(f.met), setCtMark(d.spec.Mark))
}

// eachGrant calls do with each condition that a packet has a grant. Grants for this host do not
// count for what is a target.
func (d *Draft) eachGrant(w heading, do func(*family, Exprs)) {
	o := &d.objects
	for _, f := range o.families() {
		here := Exprs{}
		if len(d.spec.Targets) > 0 {
			// ip saddr . ip daddr . meta l4proto . th dport @reach4
			do(f, f.sourceAndTarget(w).in(f.reach))
			here = f.target(w).notIn(f.targets)
		}
		// [ip daddr . meta l4proto . th dport != @targets4] ip saddr . meta l4proto . th dport @grants4
		do(f, Rule(here, f.source(w).in(f.grants)))
	}
	f := o.families()[1]
	here := Exprs{}
	if len(d.spec.Targets) > 0 {
		here = f.target(w).notIn(f.targets)
	}
	// [ip6 daddr . meta l4proto . th dport != @targets6] iif . ip6 saddr . meta l4proto . th dport @near
	do(f, Rule(here, f.linkAndSource(w).in(o.near)))
}

// linkRules let a link-local source through to the rest of door only on a link on which it was
// granted something: connection tracking does not know links apart.
func (d *Draft) linkRules() {
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
func (d *Draft) confirmRules(confirm bool) {
	if !confirm {
		return
	}
	c := d.Confirm
	d.eachGrant(inward, func(_ *family, granted Exprs) {
		// tcp flags and (fin | syn | rst | ack) == syn GRANTED counter
		d.rule(c, TCPFlags(Fin|Syn|Rst|Ack, Syn), granted, Exprs{&expr.Counter{}})
		// meta l4proto udp ct state new GRANTED counter
		d.rule(c, L4Proto(service.UDP), CTState(expr.CtStateBitNEW), granted, Exprs{&expr.Counter{}})
	})
}

// endedRules drop what belongs to a flow that neither a grant nor a first load holds open.
func (d *Draft) endedRules() {
	if len(d.spec.Cut) == 0 {
		return
	}
	c := d.Ended
	for _, f := range d.objects.families() {
		// ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 return
		d.rule(c, f.carries(inward), back())
	}
	d.eachGrant(inward, func(f *family, granted Exprs) {
		// GRANTED update @met4 { ... } return
		d.rule(c, granted, f.source(inward).update(f.met), back())
	})
	// drop
	d.rule(c, Drop())
}

// closedRules are for everybody else. A host whose closed ports answer is to answer here too,
// byte for byte: so a new flow goes on, marked, to a port that nobody can listen on (claim), and
// the kernel itself refuses it.
func (d *Draft) closedRules() {
	c := d.objects.closed
	if d.refuse == guard.Reject {
		// The kernel does not answer link-layer broadcasts, so the connection tracking entry of such a
		// packet would stay, and lead the real client's SYN to port 0.
		// meta pkttype != host drop
		d.rule(c, Exprs{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: Register}, &expr.Cmp{Op: expr.CmpOpNeq, Register: Register,
			Data: []byte{unix.PACKET_HOST}}}, Drop())
		if d.claims {
			// ct state new fib daddr type local meta mark set meta mark or MARK accept
			d.rule(c, CTState(expr.CtStateBitNEW), isType(fib(), unix.RTN_LOCAL), setMark(d.spec.Mark), Accept())
		}
		for _, t := range []uint32{unix.RTN_LOCAL, unix.RTN_UNICAST} { // nobody answers a broadcast
			// fib daddr type local goto refused
			// fib daddr type unicast goto refused
			d.rule(c, isType(fib(), t), enter(d.refused))
		}
	}
	// drop
	d.rule(c, Drop())
}

// refusedRules refuse what comes from closed, or is found by arrive.
func (d *Draft) refusedRules() {
	c := d.refused
	if d.refuse == guard.Reject {
		f6 := d.families()[1]
		// The kernel refuses IPv6 source routes with segments left before it looks at what is behind
		// them (RFC 5095), and takes no routes of types 3 and 4 where the administrator does not ask for it.
		// meta nfproto ipv6 rt type 0 rt seg-left != 0 accept
		d.rule(c, f6.match(), route(routeType), Exprs{Equal([]byte{0})}, route(routeLeft),
			Exprs{&expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{0}}}, Accept())
		for _, kind := range []byte{3, 4} {
			// meta nfproto ipv6 rt type 3 drop
			// meta nfproto ipv6 rt type 4 drop
			d.rule(c, f6.match(), route(routeType), Exprs{Equal([]byte{kind})}, Drop())
		}
		// meta l4proto tcp reject with tcp reset
		d.rule(c, resetTCP())
		// IPv6 takes no datagram without a checksum (RFC 8200, 8.1), and so answers none.
		// meta nfproto ipv6 meta l4proto udp @th,48,16 0 drop
		d.rule(c, f6.match(), L4Proto(service.UDP), Exprs{Port(Register, udpChecksum), Equal([]byte{0, 0})}, Drop())
		// meta l4proto udp reject with icmpx port-unreachable
		d.rule(c, L4Proto(service.UDP), unreachable())
	}
	// drop
	d.rule(c, Drop())
}

// claimRules come before every other DNAT, and a flow has one DNAT at the most: what closed has
// marked stays at this host. TCP goes to port 0, where nobody listens, and the kernel's reset has
// the port that was asked for. UDP stays where it is, for arrive to refuse.
func (d *Draft) claimRules() {
	if !d.claims {
		return
	}
	dnat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_INET, RegProtoMin: Register, Specified: true}
	// meta mark and MARK == MARK meta l4proto tcp dnat to :0
	d.rule(d.Claim, marked(d.spec.Mark), L4Proto(service.TCP), Exprs{&expr.Immediate{Register: Register, Data: []byte{0, 0}},
		dnat})
	// meta mark and MARK == MARK meta l4proto udp dnat to :udp dport
	d.rule(d.Claim, marked(d.spec.Mark), L4Proto(service.UDP), Exprs{Port(Register, Dport), dnat})
}

// arriveRules look at what is delivered to this host, after all that other tables have made of
// it: another port that leads to a guarded one is no way round, and neither is an address that
// only the routing knows to be the host's.
func (d *Draft) arriveRules() {
	o, c := &d.objects, d.arrive
	// iif lo accept
	d.rule(c, fromLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), Accept())
	}
	d.quotedJumps(c, Exprs{})
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), Accept())
	if d.claims {
		// Packets that closed has marked must never reach a listening socket, even if another table's
		// NAT runs first.
		// meta mark and MARK == MARK ct mark and MARK != MARK ct state new th dport != 0 goto refused
		d.rule(c, marked(d.spec.Mark), ctNotMarked(d.spec.Mark), CTState(expr.CtStateBitNEW),
			Exprs{Port(Register, Dport), &expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{0, 0}}}, enter(d.refused))
	}
	if !d.spec.TPROXY {
		d.handedRules()
	}
	for _, f := range o.families() {
		d.goesOn(c, f, Exprs{})
	}
	for _, f := range o.families() {
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 update @met4 ... accept
		d.rule(c, TCPFlags(Syn, 0), f.carries(inward), d.admit(f, inward), Accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 update @met4 ... accept
		d.rule(c, L4Proto(service.UDP), f.carries(inward), d.admit(f, inward), Accept())
	}
	d.eachGrant(inward, func(f *family, granted Exprs) {
		// GRANTED update @met4 { ... } ct mark set ct mark or MARK accept
		d.rule(c, granted, d.admit(f, inward), Accept())
		// GRANTED accept
		d.rule(c, granted, Accept())
	})
	// meta l4proto . th dport != @guarded accept
	d.rule(c, o.portIn(o.Guarded, Dport, true), Accept())
	// goto refused
	d.rule(c, enter(d.refused))
}

// handedRules refuse packets that a TPROXY rule or a BPF program assigned to a socket: the socket may
// belong to a guarded port, and no match shows its port. TPROXY assigns transparent sockets only. The
// kernel also assigns a socket this early to packets of established TCP sessions, which pass, and of
// connected UDP sockets, which are rarely transparent.
func (d *Draft) handedRules() {
	handed := Rule(handed(), transparent(), enter(d.refused))
	// meta l4proto udp meta skuid != 4294967295 socket transparent 1 goto refused
	d.rule(d.arrive, L4Proto(service.UDP), handed)
	// A bare SYN in any flow: a stranger can begin one with a packet that claims this host's address.
	// tcp flags and (syn | ack) == syn meta skuid != 4294967295 socket transparent 1 goto refused
	d.rule(d.arrive, TCPFlags(Syn|Ack, Syn), handed)
	// meta l4proto tcp ct state invalid,new meta skuid != 4294967295 socket transparent 1 goto refused
	d.rule(d.arrive, L4Proto(service.TCP), CTState(expr.CtStateBitINVALID|expr.CtStateBitNEW), handed)
}

// goesOn accepts the packets of admitted flows behind door, under a condition.
func (d *Draft) goesOn(c *nft.Chain, f *family, condition Exprs) {
	if len(d.spec.Cut) > 0 {
		// A session that was there before connection tracking is the server's if that spoke first.
		// CONDITION meta l4proto . th dport @cut ip saddr . meta l4proto . th dport @met4 jump ended
		d.rule(c, condition, d.portIn(d.cut, Dport, false), f.source(inward).in(f.met), jump(d.Ended))
	}
	// CONDITION meta nfproto ipv4 meta l4proto udp ct mark and MARK == MARK accept
	d.rule(c, condition, f.match(), L4Proto(service.UDP), ctMarked(d.spec.Mark), Accept())
	// A bare SYN begins a flow: door has just marked it, or it is not admitted.
	// CONDITION meta nfproto ipv4 tcp flags and (syn | ack) != syn ct mark and MARK == MARK accept
	d.rule(c, condition, f.match(), tcpFlagsNot(Syn|Ack, Syn), ctMarked(d.spec.Mark), Accept())
	// CONDITION meta nfproto ipv4 meta l4proto tcp ct state new ct mark and MARK == MARK accept
	d.rule(c, condition, f.match(), L4Proto(service.TCP), CTState(expr.CtStateBitNEW), ctMarked(d.spec.Mark), Accept())
}

// receiptRules keep receipts out of connection tracking. On a port of our own everything
// that leaves is a receipt; on a shared one, what the sender has marked.
func (d *Draft) receiptRules() {
	c := d.receipt
	for _, k := range d.spec.Knock {
		if k.Shared {
			// meta mark and MARK == MARK udp sport PORT notrack
			d.rule(c, marked(d.spec.Mark), UDPPort(Sport, k.Port), Exprs{&expr.Notrack{}})
			continue
		}
		// udp sport PORT notrack
		d.rule(c, UDPPort(Sport, k.Port), Exprs{&expr.Notrack{}})
	}
}
