package nftables

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// A forwarded port: lead rewrites the destination of a flow that begins with a grant, connection tracking does so
// with the packets that follow, and mask gives them this host's address as their source. Before that, guard and door
// have decided on each packet as on any other for a guarded port.

// canForward returns an error if the kernel lacks what the forwards need.
func (n *Backend) canForward(spec guard.Spec) error {
	// The kernel accepts "masq" without attributes, but not with unknown flags.
	flags := number(nil, masqFlags, 1<<31)
	for _, f := range spec.Forwards {
		for _, part := range []struct {
			needed           bool
			expression, name string
			attributes       []byte
		}{
			{true, "nat", "address translation (CONFIG_NFT_NAT)", nil},
			{f.Masquerade, "masq", "masquerading (CONFIG_NFT_MASQ)", flags},
		} {
			if !part.needed {
				continue
			}
			if knows, err := n.knows(part.expression, part.attributes); err != nil || !knows {
				return cmp.Or(err, fmt.Errorf("this kernel cannot forward: it lacks %s; load that module, or remove the setting "+
					"forward", part.name))
			}
		}
	}
	return nil
}

const masqFlags = 1 // NFTA_MASQ_FLAGS of linux/netfilter/nf_tables.h

// stale returns the chains for forwards that are in the kernel's table and that the draft does not need.
func (n *Backend) stale(d *Draft) []*nft.Chain {
	var chains []*nft.Chain
	for _, c := range []*nft.Chain{d.lead, d.mask} {
		if _, err := n.Conn.ListChain(c.Table, c.Name); err == nil && !d.needs(c) {
			chains = append(chains, c)
		}
	}
	return chains
}

// leadRules lead new flows from sources with a grant for a forwarded port on. What connection tracking takes for a new
// flow has passed door; a packet whose grant has ended since stays here, where arrive refuses it.
func (d *Draft) leadRules() {
	for _, l := range d.legs {
		for _, f := range d.families() {
			if !f.leads(l) {
				continue
			}
			to := Rule(onOnePort(l.Proto, Dport, l.Port), isType(destination, unix.RTN_LOCAL))
			if d.claims { // the source has a grant, and its one flow has come: claim refuses what closed has marked
				to = Rule(to, notMarked(d.spec.Mark))
			}
			d.rule(d.lead, to, f.source(inward).in(f.grants), f.leadTo(l))
			if l.Here() && f.proto == unix.NFPROTO_IPV6 { // no router forwards a packet from a link-local address
				d.rule(d.lead, to, f.linkAndSource(inward).in(d.near), f.leadTo(l))
			}
		}
	}
}

// maskRules masquerade flows to a machine. A chain of type nat sees only the packet that begins a flow.
func (d *Draft) maskRules() {
	for _, l := range d.legs {
		for _, f := range d.families() {
			if l.Masquerade && !l.Here() && f.leads(l) {
				d.rule(d.mask, f.at(f.daddr, l.To.Addr()), d.led(l, Dport), part("masquerade", &expr.Masq{}))
			}
		}
	}
}

// ledAwayRules pass the flows that lead has led to a machine: the machine's port may also be one of a service with
// other terms. A machine whose UDP server keeps sending begins no flow with a peer that was led there.
func (d *Draft) ledAwayRules() {
	for _, l := range d.legs {
		for _, f := range d.families() {
			if l.Here() || !f.leads(l) {
				continue
			}
			met := Part{}
			if l.Proto == service.UDP {
				met = f.source(inward).update(f.met)
			}
			d.rule(d.passing, f.at(f.daddr, l.To.Addr()), d.led(l, Dport), isOriginal(), met, Accept())
			d.rule(d.passing, f.at(f.saddr, l.To.Addr()), d.led(l, Sport), IsReply(), Accept())
		}
	}
}

// ledHereRules refuse packets that would begin a flow with a program here on a forwarded port, and remember the peers
// that were led to another UDP port.
func (d *Draft) ledHereRules() {
	c := d.arrive
	for _, f := range d.spec.Forwards {
		for _, p := range f.Ports {
			begins := TCPFlags(Syn|Ack, Syn)
			if p.Proto == service.UDP {
				begins = CTState(expr.CtStateBitINVALID | expr.CtStateBitNEW | expr.CtStateBitRELATED |
					expr.CtStateBitUNTRACKED)
			}
			// @guarded: after a trial the port is open again.
			d.rule(c, onOnePort(p.Proto, Dport, p.Low), onPort(Dport).in(d.Guarded), begins, enter(d.refused))
		}
	}
	for _, l := range d.legs {
		for _, f := range d.families() {
			if l.Here() && l.Proto == service.UDP {
				d.rule(c, d.led(l, Dport), isOriginal(), f.source(inward).update(f.met))
			}
		}
	}
}

// leads reports whether a port leads elsewhere in this family.
func (f *family) leads(l guard.Leg) bool {
	return l.Here() || l.To.Addr().Is6() == (f.proto == unix.NFPROTO_IPV6)
}

// led matches packets of flows that lead has led on, before translation back: end is where they have the port that
// the flow was led to.
func (d *Draft) led(l guard.Leg, end uint32) Part {
	original := &expr.Ct{Key: expr.CtKeyPROTODST, Register: Register, Direction: 0}
	return Rule(onOnePort(l.Proto, end, l.To.Port()), ctMarked(d.spec.Mark),
		part("ct status dnat", loadCt(expr.CtKeySTATUS), and(Native(statusDNAT)), notEqual(Native(0))),
		part(fmt.Sprintf("ct original proto-dst %d", l.Port), original, Equal(binary.BigEndian.AppendUint16(nil, l.Port))))
}

// at matches packets with an address of the family.
func (f *family) at(offset uint32, a netip.Addr) Part {
	return Rule(f.implied(), part(fmt.Sprintf("%s %s", f.addressName(offset), a), f.address(Register, offset),
		Equal(a.AsSlice())))
}

// onOnePort matches packets with that number as one of their ports.
func onOnePort(p service.Proto, offset uint32, number uint16) Part {
	m := Rule(L4Proto(p), Raw(Port(Register, offset), Equal(binary.BigEndian.AppendUint16(nil, number))))
	m.Text = fmt.Sprintf("%v %s %d", p, portName(offset), number)
	return m
}

// leadTo rewrites the destination of a flow.
func (f *family) leadTo(l guard.Leg) Part {
	port := binary.BigEndian.AppendUint16(nil, l.To.Port())
	if l.Here() {
		return part(fmt.Sprintf("dnat to :%d", l.To.Port()), &expr.Immediate{Register: Register, Data: port}, dnat())
	}
	const portRegister = Register + 4 // after an address
	return part(fmt.Sprintf("dnat %s to %s", f.name, l.To),
		&expr.Immediate{Register: Register, Data: l.To.Addr().AsSlice()},
		&expr.Immediate{Register: portRegister, Data: port},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: Register, RegProtoMin: portRegister,
			Specified: true})
}
