package nftables

import (
	"encoding/binary"
	"fmt"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// An ICMP error quotes the packet that it is about, and the kernel delivers it to the socket that sent that packet,
// even behind a guarded port, if the socket listens for errors (IP_RECVERR). So an error that quotes a packet from a
// guarded port must belong to a flow that the guard admitted. Connection tracking finds the flow of a quoted packet;
// an error that belongs to none is invalid, or untracked if another table says so. Neighbour discovery is untracked
// too, but is not an error.

// quotedJumps send ICMP messages that belong to no admitted flow from a chain to quoted, under a condition.
func (d *Draft) quotedJumps(c *nft.Chain, condition Part) {
	for _, proto := range []service.Proto{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		d.rule(c, condition, L4Proto(proto), CTState(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), jump(d.quoted))
		d.rule(c, condition, L4Proto(proto), CTState(expr.CtStateBitRELATED), ctNotMarked(d.spec.Mark), jump(d.quoted))
	}
}

// Offsets from the start of an ICMP message, whose first 8 bytes precede the quoted packet.
const (
	icmpType = 0
	// icmp6Informs is the first ICMPv6 type that is not an error (RFC 4443 2.1).
	icmp6Informs  = 128
	quotedHeader4 = 8      // version and length of the header
	quotedProto4  = 8 + 9  // protocol
	quotedPort4   = 8 + 20 // source port, behind a header without options
	quotedProto6  = 8 + 6  // next header
	quotedPort6   = 8 + 40 // source port, behind a header without extensions
	ihl           = 0x0f   // mask of the header's length
	noOptions     = 20 / 4 // of the header's length
)

// quotedRules drop errors that quote a packet from a guarded port. They also drop errors that hide the quoted port
// behind options or extension headers, which no packet from here has.
func (d *Draft) quotedRules() {
	o, c := &d.objects, d.quoted
	f4, f6 := o.families()[0], o.families()[1]
	other := f4.match()
	for _, t := range quotingTypes {
		other = Rule(other, part(fmt.Sprintf("@th,0,8 != %d", t), quote(icmpType, 1), notEqual([]byte{t})))
	}
	d.rule(c, other, back())
	d.rule(c, part(fmt.Sprintf("@th,0,8 >= %d", icmp6Informs), quote(icmpType, 1),
		&expr.Cmp{Op: expr.CmpOpGte, Register: Register, Data: []byte{icmp6Informs}}), back())
	d.rule(c, f4.match(), part("@th,64,8 & 0xf != 5", quote(quotedHeader4, 1), and([]byte{ihl}),
		notEqual([]byte{noOptions})), Drop())
	known := f6.match()
	for _, proto := range guard.LastHeaders {
		known = Rule(known, part(fmt.Sprintf("@th,112,8 != %d", proto), quote(quotedProto6, 1), notEqual([]byte{proto})))
	}
	d.rule(c, known, Drop())
	for _, p := range d.spec.EveryPort() {
		to4, to6 := f4.match(), f6.match()
		if !slices.Contains(d.spec.Guarded, p) { // at targets alone
			to4, to6 = f4.toExtra(f4.daddr), f6.toExtra(f6.daddr)
		}
		d.rule(c, to4, quotes(quotedProto4, quotedPort4, p), Drop())
		d.rule(c, to6, quotes(quotedProto6, quotedPort6, p), Drop())
	}
}

func quote(offset, size uint32) *expr.Payload {
	return &expr.Payload{DestRegister: Register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

// quotes matches errors that quote a packet from one of the ports.
func quotes(proto, port uint32, p service.Ports) Part {
	at := fmt.Sprintf("@th,%d,16", 8*port)
	is := part(fmt.Sprintf("@th,%d,8 %d", 8*proto, p.Proto), quote(proto, 1), Equal([]byte{byte(p.Proto)}))
	limit := func(op expr.CmpOp, port uint16) *expr.Cmp {
		return &expr.Cmp{Op: op, Register: Register, Data: binary.BigEndian.AppendUint16(nil, port)}
	}
	if p.Low == p.High {
		return Rule(is, part(fmt.Sprintf("%s %d", at, p.Low), quote(port, 2), limit(expr.CmpOpEq, p.Low)))
	}
	return Rule(is, part(fmt.Sprintf("%s >= %d %[1]s <= %[3]d", at, p.Low, p.High), quote(port, 2),
		limit(expr.CmpOpGte, p.Low), limit(expr.CmpOpLte, p.High)))
}

// quotingTypes are the types of ICMP errors (RFC 792).
var quotingTypes = []byte{3, 4, 5, 11, 12}
