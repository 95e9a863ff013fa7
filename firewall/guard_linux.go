package firewall

import (
	"errors"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/spa"
)

// addRules adds the chains and fills them, whatever was in them.
func (d *draft) addRules(confirm bool) error {
	d.emptyChains()
	err := errors.Join(d.knockRules(), d.guardRules(confirm))
	d.reviveRules()
	d.receiptRules()
	d.hushRules()
	return err
}

// emptyChains adds the chains with nothing in them.
func (d *draft) emptyChains() {
	for _, c := range d.objects.chains() {
		d.conn.AddChain(c)
		d.conn.FlushChain(c)
	}
}

func (d *draft) rule(c *nft.Chain, parts ...exprs) {
	d.conn.AddRule(&nft.Rule{Table: c.Table, Chain: c, Exprs: rule(parts...)})
}

// knockRules drop what a router would answer too: it has the anycast address of each of
// its IPv6 subnets.
func (d *draft) knockRules() error {
	c := d.objects.knock
	// iif lo accept
	d.rule(c, fromLoopback(), accept())
	for _, k := range d.cfg.Knock {
		if k.Shared {
			continue
		}
		ours, err := d.addressTypes(unix.RTN_LOCAL, unix.RTN_ANYCAST)
		if err != nil {
			return err
		}
		// fib daddr type { local, anycast } udp dport PORT drop
		d.rule(c, exprs{fib(), lookup(ours, false)}, udpPort(dport, k.Port), drop())
	}
	return nil
}

func (d *draft) guardRules(confirm bool) error {
	o, c := &d.objects, d.objects.guard
	mark := d.cfg.Mark

	// 1. What is none of our business. Loopback includes the host's own addresses.
	// iif lo accept
	d.rule(c, fromLoopback(), accept())
	for _, name := range d.cfg.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), accept())
	}
	if len(d.cfg.Cut) > 0 {
		// A session that was there before connection tracking is the server's if that spoke first.
		// ct direction reply ct mark and MARK == MARK meta l4proto . th dport @cut fib daddr type local jump ended
		d.rule(c, isReply(), ctMarked(mark), o.portIn(o.cut, dport, false), exprs{fib(), equal(native(unix.RTN_LOCAL))}, jump(o.ended))
		d.endedRules()
	}
	// Before any rule about flows: the host's own, whose local port may be a guarded one.
	// ct direction reply accept
	d.rule(c, isReply(), accept())

	// 2. Addresses and ports that are not guarded.
	if err := d.elsewhere(); err != nil {
		return err
	}

	// 3. Flows that this guard let in. The mark alone is not enough: another tool may set it.
	// Nor is it with the state of TCP: until a flow has ended on both sides, a bare SYN from
	// its address and port counts as a packet of it, and begins a new one all the same.
	// A session of a port in @cut ends with its grant.
	lasts := exprs{}
	if len(d.cfg.Cut) > 0 {
		lasts = o.portIn(o.cut, dport, true)
	}
	// [meta l4proto . th dport != @cut] ct state related ct mark and MARK == MARK accept
	d.rule(c, lasts, ctState(expr.CtStateBitRELATED), ctMarked(mark), accept())
	// [...] meta l4proto udp ct state established ct mark and MARK == MARK accept
	d.rule(c, lasts, l4proto(spa.UDP), ctState(expr.CtStateBitESTABLISHED), ctMarked(mark), accept())
	// [...] tcp flags and (syn | ack) != syn ct state established ct mark and MARK == MARK accept
	d.rule(c, lasts, tcpFlagsNot(syn|ack, syn), ctState(expr.CtStateBitESTABLISHED), ctMarked(mark), accept())
	for _, f := range o.families() {
		carried := f.carries(f.saddr, f.daddr, sport, dport)
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 ct mark set ct mark or MARK accept
		d.rule(c, tcpFlags(syn, 0), carried, setCtMark(mark), accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 ct mark set ct mark or MARK accept
		d.rule(c, l4proto(spa.UDP), carried, setCtMark(mark), accept())
	}

	// 4. Granted sources.
	if confirm {
		// jump confirm
		d.rule(c, jump(o.confirm))
		d.confirmRules()
	}
	for _, f := range o.families() {
		// ip saddr . meta l4proto . th dport @grants4 ct mark set ct mark or MARK accept
		d.rule(c, f.granted(f.saddr, dport), setCtMark(mark), accept())
		// What another table leaves untracked has no mark, and ends the rule above before its accept.
		// ip saddr . meta l4proto . th dport @grants4 accept
		d.rule(c, f.granted(f.saddr, dport), accept())
	}

	// 5. Everybody else.
	if d.closed == Reject {
		// meta l4proto tcp reject with tcp reset
		d.rule(c, resetTCP())
		// reject with icmpx port-unreachable
		d.rule(c, unreachable())
		return nil
	}
	// drop
	d.rule(c, drop())
	return nil
}

// elsewhere accepts what is for no guarded address, or for no guarded port.
func (d *draft) elsewhere() error {
	o, c := &d.objects, d.objects.guard
	for _, f := range o.families() {
		// A guarded UDP port can be reached by any of them.
		local, err := d.addressTypes(unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST)
		if err != nil {
			return err
		}
		// ip daddr != @addresses4 fib daddr type != { local, broadcast, anycast, multicast } accept
		d.rule(c, f.notExtra(f.daddr), exprs{fib(), lookup(local, true)}, accept())
	}
	// The protocol first: a packet of another one may be too short to have ports.
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), accept())
	// meta l4proto . th dport != @guarded accept
	d.rule(c, o.portIn(o.guarded, dport, true), accept())
	return nil
}

// addressTypes adds an anonymous set of types of addresses, for one rule.
func (d *draft) addressTypes(types ...uint32) (*nft.Set, error) {
	s := &nft.Set{
		Table: d.objects.table, Anonymous: true, Constant: true,
		KeyType: nft.TypeFIBAddr,
	}
	var es []nft.SetElement
	for _, t := range types {
		es = append(es, nft.SetElement{Key: native(t)})
	}
	return s, d.conn.AddSet(s, es)
}

// confirmRules count the packets that begin a flow of a granted source.
func (d *draft) confirmRules() {
	c := d.objects.confirm
	for _, f := range d.objects.families() {
		granted := f.granted(f.saddr, dport)
		// tcp flags and (fin | syn | rst | ack) == syn ip saddr . meta l4proto . th dport @grants4 counter
		d.rule(c, tcpFlags(fin|syn|rst|ack, syn), granted, exprs{&expr.Counter{}})
		// meta l4proto udp ct state new ip saddr . meta l4proto . th dport @grants4 counter
		d.rule(c, l4proto(spa.UDP), ctState(expr.CtStateBitNEW), granted, exprs{&expr.Counter{}})
	}
}

// endedRules drop what belongs to a flow that neither a grant nor a first load holds open.
func (d *draft) endedRules() {
	c := d.objects.ended
	for _, f := range d.objects.families() {
		// ip saddr . meta l4proto . th dport @grants4 return
		d.rule(c, f.granted(f.saddr, dport), verdict(expr.VerdictReturn))
		// ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 return
		d.rule(c, f.carries(f.saddr, f.daddr, sport, dport), verdict(expr.VerdictReturn))
	}
	// drop
	d.rule(c, drop())
}

// reviveRules look at what leaves guarded ports. A flow that came to be while the guard
// was away is new to connection tracking when its server sends; let out, it would be a
// flow of the server's, and its client's packets replies.
func (d *draft) reviveRules() {
	o, c := &d.objects, d.objects.revive
	mark := d.cfg.Mark
	// oif lo accept
	d.rule(c, toLoopback(), accept())
	for _, name := range d.cfg.Trusted {
		// oifname NAME accept
		d.rule(c, ifname(expr.MetaKeyOIFNAME, name), accept())
	}
	// meta l4proto . th sport != @guarded accept
	d.rule(c, o.portIn(o.guarded, sport, true), accept())
	for _, f := range o.families() {
		// ip daddr . meta l4proto . th sport @grants4 ct mark set ct mark or MARK accept
		d.rule(c, f.granted(f.daddr, sport), setCtMark(mark), accept())
		// ip daddr . ip saddr . meta l4proto . th dport . th sport @carried4 ct mark set ct mark or MARK accept
		d.rule(c, f.carries(f.daddr, f.saddr, dport, sport), setCtMark(mark), accept())
	}
	// Answers in a flow that the guard has not admitted, or admits no more.
	// meta l4proto udp ct direction reply ct mark and MARK != MARK drop
	d.rule(c, l4proto(spa.UDP), isReply(), ctNotMarked(mark), drop())
	// ct state new tcp flags and (syn | ack) != syn drop
	d.rule(c, ctState(expr.CtStateBitNEW), tcpFlagsNot(syn|ack, syn), drop())
}

// hushRules look at what leaves a port whose sessions end with the grant: by now an answer
// that DNAT leads back has the port and the address that the grant is for.
func (d *draft) hushRules() {
	o, c := &d.objects, d.objects.hush
	if len(d.cfg.Cut) == 0 {
		return
	}
	// oif lo accept
	d.rule(c, toLoopback(), accept())
	for _, name := range d.cfg.Trusted {
		// oifname NAME accept
		d.rule(c, ifname(expr.MetaKeyOIFNAME, name), accept())
	}
	// Too short to have ports, an answer of another protocol would be dropped as one.
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), accept())
	// meta l4proto . th sport != @cut accept
	d.rule(c, o.portIn(o.cut, sport, true), accept())
	for _, f := range o.families() {
		// ip saddr != @addresses4 fib saddr type != local accept
		d.rule(c, f.notExtra(f.saddr), exprs{fibSource(), &expr.Cmp{Op: expr.CmpOpNeq, Register: first, Data: native(unix.RTN_LOCAL)}}, accept())
		// ip daddr . meta l4proto . th sport @grants4 accept
		d.rule(c, f.granted(f.daddr, sport), accept())
		// ip daddr . ip saddr . meta l4proto . th dport . th sport @carried4 accept
		d.rule(c, f.carries(f.daddr, f.saddr, dport, sport), accept())
	}
	// A reset tells the client that the session is over, and is how strangers are rejected.
	// tcp flags and rst == rst accept
	d.rule(c, tcpFlags(rst, rst), accept())
	// ct direction reply drop
	d.rule(c, isReply(), drop())
	// ct mark and MARK == MARK drop
	d.rule(c, ctMarked(d.cfg.Mark), drop())
}

// receiptRules keep receipts out of connection tracking. On a port of our own everything
// that leaves is a receipt; on a shared one, what the sender has marked.
func (d *draft) receiptRules() {
	c := d.objects.receipt
	for _, k := range d.cfg.Knock {
		if k.Shared {
			// meta mark and MARK == MARK udp sport PORT notrack
			d.rule(c, marked(d.cfg.Mark), udpPort(sport, k.Port), exprs{&expr.Notrack{}})
			continue
		}
		// udp sport PORT notrack
		d.rule(c, udpPort(sport, k.Port), exprs{&expr.Notrack{}})
	}
}
