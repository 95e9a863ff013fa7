package firewall

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// Connection tracking begins as soon as a rule is prepared that asks for it, before the rules
// are in force. A server that goes on sending in a flow of a gap would in that moment make it
// one of its own, of which the client's packets are replies. So where no rule of ours keeps
// connection tracking going, a guard without it stands first, for the moment in which the
// other is prepared: grants pass and what a first load carries, and all else of guarded ports
// waits.

// tracks reports whether a rule of our guard keeps connection tracking going.
func (n *nftables) tracks() bool {
	rules, err := n.conn.GetRules(n.objects.table, n.objects.guard)
	if err != nil {
		_ = nl.Drain(n.socket) // of an answer that came in part; who asks next finds the trouble
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

// bareRules adds the chains and fills them without connection tracking, whatever was in them.
func (d *draft) bareRules() {
	d.claims = false // a chain of type nat would begin connection tracking
	d.emptyChains()
	d.bareRevive()
	d.bareGuard()
}

// bareGuard looks at what arrives: see guardRules.
func (d *draft) bareGuard() {
	o, c := &d.objects, d.guard
	// iif lo accept
	d.rule(c, fromLoopback(), accept())
	for _, name := range d.spec.Trusted {
		// iifname NAME accept
		d.rule(c, ifname(expr.MetaKeyIIFNAME, name), accept())
	}
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), accept())
	d.elsewhere()
	// Nobody puts fragments together before this, and only the first has the ports. The others,
	// which may be for a port that is not guarded, are worth nothing without it.
	for _, f := range o.families() {
		// ip frag-off and 0x1fff != 0 accept
		d.rule(c, f.continues(), accept())
	}
	// goto door
	d.rule(c, enter(d.door))

	c = d.door
	for _, f := range o.families() {
		// tcp flags and syn == 0 ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 accept
		d.rule(c, tcpFlags(syn, 0), f.carries(inward), accept())
		// meta l4proto udp ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 accept
		d.rule(c, l4proto(service.UDP), f.carries(inward), accept())
	}
	d.eachGrant(inward, func(_ *family, granted exprs) {
		// GRANTED accept
		d.rule(c, granted, accept())
	})
	// drop
	d.rule(c, drop())
}

// ip frag-off and 0x1fff != 0 (or frag frag-off and 0xfff8 != 0)
func (f *family) continues() exprs {
	load := exprs{
		&expr.Payload{DestRegister: first, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		and([]byte{0x1f, 0xff}),
	}
	if f.proto == unix.NFPROTO_IPV6 {
		load = exprs{
			&expr.Exthdr{DestRegister: first, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
			and([]byte{0xff, 0xf8}),
		}
	}
	return rule(f.match(), load, exprs{&expr.Cmp{Op: expr.CmpOpNeq, Register: first, Data: []byte{0, 0}}})
}

// bareRevive looks at what leaves guarded ports: see reviveRules.
func (d *draft) bareRevive() {
	o, c := &d.objects, d.objects.revive
	// oif lo accept
	d.rule(c, toLoopback(), accept())
	for _, name := range d.spec.Trusted {
		// oifname NAME accept
		d.rule(c, ifname(expr.MetaKeyOIFNAME, name), accept())
	}
	// meta l4proto != tcp meta l4proto != udp accept
	d.rule(c, neitherTCPNorUDP(), accept())
	// meta l4proto . th sport != @guarded accept
	d.rule(c, o.portIn(o.guarded, sport, true), accept())
	for _, f := range o.families() {
		// ip daddr . ip saddr . meta l4proto . th dport . th sport @carried4 accept
		d.rule(c, f.carries(outward), accept())
	}
	d.eachGrant(outward, func(_ *family, granted exprs) {
		// GRANTED accept
		d.rule(c, granted, accept())
	})
	// drop
	d.rule(c, drop())
}
