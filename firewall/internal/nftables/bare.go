package nftables

import (
	"github.com/google/nftables/expr"

	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// Connection tracking begins as soon as a rule is prepared that asks for it, before the rules
// are in force. A server that goes on sending in a flow of a gap would in that moment make it
// one of its own, of which the client's packets are replies. So where no rule of ours keeps
// connection tracking going, a guard without it stands first, for the moment in which the
// other is prepared: grants pass and what a first load carries, and all else of guarded ports
// waits.

// Tracks reports whether a rule of our guard keeps connection tracking going.
func (n *Backend) Tracks() bool {
	rules, err := n.Conn.GetRules(n.Objects.Table, n.Objects.Guard)
	if err != nil {
		_ = nl.Drain(n.Socket) // of an answer that came in part; who asks next finds the trouble
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

// BareRules adds the chains and fills them without connection tracking, whatever was in them.
func (d *Draft) BareRules() {
	d.claims = false // a chain of type nat would begin connection tracking
	d.emptyChains()
	d.bareRevive()
	d.bareGuard()
}

// bareGuard looks at what arrives: see guardRules.
func (d *Draft) bareGuard() {
	o, c := &d.objects, d.Guard
	d.rule(c, fromLoopback(), Accept())
	for _, name := range d.spec.Trusted {
		d.rule(c, iifname(name), Accept())
	}
	d.rule(c, neitherTCPNorUDP(), Accept())
	d.elsewhere()
	// Nobody puts fragments together before this, and only the first has the ports. The others,
	// which may be for a port that is not guarded, are worth nothing without it.
	for _, f := range o.families() {
		d.rule(c, f.continues(), Accept())
	}
	d.rule(c, enter(d.door))

	c = d.door
	for _, f := range o.families() {
		d.rule(c, TCPFlags(Syn, 0), f.carries(inward), Accept())
		d.rule(c, L4Proto(service.UDP), f.carries(inward), Accept())
	}
	d.eachGrant(inward, func(_ *family, granted Part) {
		d.rule(c, granted, Accept())
	})
	d.rule(c, Drop())
}

// bareRevive looks at what leaves guarded ports: see reviveRules.
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
