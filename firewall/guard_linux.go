package firewall

import (
	"errors"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/spa"
)

// addRules adds the chains and fills them, whatever was in them.
func (n *nftables) addRules(confirm bool) error {
	for _, c := range n.objects.chains() {
		n.conn.AddChain(c)
		n.conn.FlushChain(c)
	}
	err := errors.Join(n.knockRules(), n.guardRules(confirm))
	n.reviveRules()
	n.receiptRules()
	return err
}

func (n *nftables) rule(c *nft.Chain, parts ...exprs) {
	n.conn.AddRule(&nft.Rule{Table: c.Table, Chain: c, Exprs: rule(parts...)})
}

// knockRules drop what a router would answer too: it has the anycast address of each of
// its IPv6 subnets.
func (n *nftables) knockRules() error {
	c := n.objects.knock
	// iif lo accept
	n.rule(c, fromLoopback(), accept())
	for _, k := range n.cfg.Knock {
		if k.Shared {
			continue
		}
		ours, err := n.addressTypes(unix.RTN_LOCAL, unix.RTN_ANYCAST)
		if err != nil {
			return err
		}
		// fib daddr type { local, anycast } udp dport PORT drop
		n.rule(c, exprs{fib(), lookup(ours, false)}, udpPort(dport, k.Port), drop())
	}
	return nil
}

func (n *nftables) guardRules(confirm bool) error {
	o, c := &n.objects, n.objects.guard
	mark := n.cfg.Mark

	// 1. What is none of our business. Loopback includes the host's own addresses.
	// iif lo accept
	n.rule(c, fromLoopback(), accept())
	for _, name := range n.cfg.Trusted {
		// iifname NAME accept
		n.rule(c, ifname(expr.MetaKeyIIFNAME, name), accept())
	}
	// Before any rule about flows: the host's own, whose local port may be a guarded one.
	// ct direction reply accept
	n.rule(c, isReply(), accept())
	for _, f := range o.families() {
		// A guarded UDP port can be reached by any of them.
		local, err := n.addressTypes(unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST)
		if err != nil {
			return err
		}
		// ip daddr != @addresses4 fib daddr type != { local, broadcast, anycast, multicast } accept
		n.rule(c, f.notExtra(), exprs{fib(), lookup(local, true)}, accept())
	}

	// 2. Ports that are not guarded. The protocol first: a packet of another one may be
	// too short to have ports.
	// meta l4proto != tcp meta l4proto != udp accept
	n.rule(c, neitherTCPNorUDP(), accept())
	// meta l4proto . th dport != @guarded accept
	n.rule(c, o.notGuarded(dport), accept())

	// 3. Flows that this guard let in. The mark alone is not enough: another tool may set it.
	// Nor is it with the state of TCP: until a flow has ended on both sides, a bare SYN from
	// its address and port counts as a packet of it, and begins a new one all the same.
	// ct state related ct mark and MARK == MARK accept
	n.rule(c, ctState(expr.CtStateBitRELATED), ctMarked(mark), accept())
	// meta l4proto udp ct state established ct mark and MARK == MARK accept
	n.rule(c, l4proto(spa.UDP), ctState(expr.CtStateBitESTABLISHED), ctMarked(mark), accept())
	// tcp flags and (syn | ack) != syn ct state established ct mark and MARK == MARK accept
	n.rule(c, tcpFlagsNot(syn|ack, syn), ctState(expr.CtStateBitESTABLISHED), ctMarked(mark), accept())
	for _, f := range o.families() {
		carried := f.carries(f.saddr, f.daddr, sport, dport)
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 ct mark set ct mark or MARK accept
		n.rule(c, tcpFlags(syn, 0), carried, setCtMark(mark), accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 ct mark set ct mark or MARK accept
		n.rule(c, l4proto(spa.UDP), carried, setCtMark(mark), accept())
	}

	// 4. Granted sources.
	if confirm {
		// jump confirm
		n.rule(c, jump(o.confirm))
		n.confirmRules()
	}
	for _, f := range o.families() {
		// ip saddr . meta l4proto . th dport @grants4 ct mark set ct mark or MARK accept
		n.rule(c, f.granted(f.saddr, dport), setCtMark(mark), accept())
		// What another table leaves untracked has no mark, and ends the rule above before its accept.
		// ip saddr . meta l4proto . th dport @grants4 accept
		n.rule(c, f.granted(f.saddr, dport), accept())
	}

	// 5. Everybody else.
	if n.cfg.Closed == Reject {
		// meta l4proto tcp reject with tcp reset
		n.rule(c, resetTCP())
		// reject with icmpx port-unreachable
		n.rule(c, unreachable())
		return nil
	}
	// drop
	n.rule(c, drop())
	return nil
}

// addressTypes adds an anonymous set of types of addresses, for one rule.
func (n *nftables) addressTypes(types ...uint32) (*nft.Set, error) {
	s := &nft.Set{Table: n.objects.table, Anonymous: true, Constant: true, KeyType: nft.TypeFIBAddr}
	var es []nft.SetElement
	for _, t := range types {
		es = append(es, nft.SetElement{Key: native(t)})
	}
	return s, n.conn.AddSet(s, es)
}

// confirmRules count the packets that begin a flow of a granted source.
func (n *nftables) confirmRules() {
	c := n.objects.confirm
	for _, f := range n.objects.families() {
		granted := f.granted(f.saddr, dport)
		// tcp flags and (fin | syn | rst | ack) == syn ip saddr . meta l4proto . th dport @grants4 counter
		n.rule(c, tcpFlags(fin|syn|rst|ack, syn), granted, exprs{&expr.Counter{}})
		// meta l4proto udp ct state new ip saddr . meta l4proto . th dport @grants4 counter
		n.rule(c, l4proto(spa.UDP), ctState(expr.CtStateBitNEW), granted, exprs{&expr.Counter{}})
	}
}

// reviveRules look at what leaves guarded ports. A flow that came to be while the guard
// was away is new to connection tracking when its server sends; let out, it would be a
// flow of the server's, and its client's packets replies.
func (n *nftables) reviveRules() {
	o, c := &n.objects, n.objects.revive
	mark := n.cfg.Mark
	// oif lo accept
	n.rule(c, toLoopback(), accept())
	for _, name := range n.cfg.Trusted {
		// oifname NAME accept
		n.rule(c, ifname(expr.MetaKeyOIFNAME, name), accept())
	}
	// meta l4proto . th sport != @guarded accept
	n.rule(c, o.notGuarded(sport), accept())
	for _, f := range o.families() {
		// ip daddr . meta l4proto . th sport @grants4 ct mark set ct mark or MARK accept
		n.rule(c, f.granted(f.daddr, sport), setCtMark(mark), accept())
		// ip daddr . ip saddr . meta l4proto . th dport . th sport @carried4 ct mark set ct mark or MARK accept
		n.rule(c, f.carries(f.daddr, f.saddr, dport, sport), setCtMark(mark), accept())
	}
	// ct state new tcp flags and (syn | ack) != syn drop
	n.rule(c, ctState(expr.CtStateBitNEW), tcpFlagsNot(syn|ack, syn), drop())
}

// receiptRules keep receipts out of connection tracking. On a port of our own everything
// that leaves is a receipt; on a shared one, what the sender has marked.
func (n *nftables) receiptRules() {
	c := n.objects.receipt
	for _, k := range n.cfg.Knock {
		if k.Shared {
			// meta mark and MARK == MARK udp sport PORT notrack
			n.rule(c, marked(n.cfg.Mark), udpPort(sport, k.Port), exprs{&expr.Notrack{}})
			continue
		}
		// udp sport PORT notrack
		n.rule(c, udpPort(sport, k.Port), exprs{&expr.Notrack{}})
	}
}
