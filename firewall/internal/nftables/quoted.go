package nftables

import (
	"encoding/binary"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// An ICMP error quotes the packet that it is about, and the kernel hands it to the socket that
// the quoted packet came from: also to one behind a guarded port, if it listens for errors
// (IP_RECVERR). So an error that quotes a packet from a guarded port must belong to a flow that
// the guard admitted. Connection tracking knows which flow a quoted packet is of; what is of none
// is invalid, or untracked where another table says so. Neighbour discovery is untracked too, and no
// error.

// quotedJumps lead ICMP messages that belong to no admitted flow from a chain to quoted, under a
// condition.
func (d *Draft) quotedJumps(c *nft.Chain, condition Exprs) {
	for _, proto := range []service.Proto{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		// CONDITION meta l4proto icmp ct state invalid,untracked jump quoted
		d.rule(c, condition, L4Proto(proto), CTState(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), jump(d.quoted))
		// CONDITION meta l4proto icmp ct state related ct mark and MARK != MARK jump quoted
		d.rule(c, condition, L4Proto(proto), CTState(expr.CtStateBitRELATED), ctNotMarked(d.spec.Mark), jump(d.quoted))
	}
}

// Offsets from the beginning of an ICMP message, behind whose 8 bytes the quoted packet begins.
const (
	icmpType = 0
	// icmp6Informs is the first type that is no error (RFC 4443 2.1).
	icmp6Informs  = 128
	quotedHeader4 = 8      // version and length of the header
	quotedProto4  = 8 + 9  // protocol
	quotedPort4   = 8 + 20 // source port, behind a header without options
	quotedProto6  = 8 + 6  // next header
	quotedPort6   = 8 + 40 // source port, behind a header without extensions
	ihl           = 0x0f   // mask of the header's length
	noOptions     = 20 / 4 // of the header's length
)

// quotedRules drop errors that quote a packet from a guarded port. What hides
// the quoted port behind options or extension headers is dropped too: no packet from here has any.
func (d *Draft) quotedRules() {
	o, c := &d.objects, d.quoted
	f4, f6 := o.families()[0], o.families()[1]
	other := func(f *family, types ...byte) Exprs {
		es := f.match()
		for _, t := range types {
			es = append(es, quote(icmpType, 1), &expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{t}})
		}
		return es
	}
	// meta nfproto ipv4 @th,0,8 != 3 @th,0,8 != 4 @th,0,8 != 5 @th,0,8 != 11 @th,0,8 != 12 return
	d.rule(c, other(f4, quotingTypes...), back())
	// meta nfproto ipv6 @th,0,8 >= 128 return
	d.rule(c, f6.match(), Exprs{quote(icmpType, 1), &expr.Cmp{Op: expr.CmpOpGte, Register: Register,
		Data: []byte{icmp6Informs}}}, back())
	// meta nfproto ipv4 @th,64,8 and 0xf != 5 drop
	d.rule(c, f4.match(), Exprs{
		quote(quotedHeader4, 1), and([]byte{ihl}), &expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{noOptions}},
	}, Drop())
	// meta nfproto ipv6 @th,112,8 != PROTOCOL ... drop
	known := f6.match()
	for _, proto := range guard.LastHeaders {
		known = append(known, quote(quotedProto6, 1), &expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{proto}})
	}
	d.rule(c, known, Drop())
	for _, p := range d.spec.EveryPort() {
		// meta nfproto ipv4 @th,136,8 PROTOCOL @th,224,16 >= LOW @th,224,16 <= HIGH drop
		d.rule(c, f4.match(), quotes(quotedProto4, quotedPort4, p), Drop())
		// meta nfproto ipv6 @th,112,8 PROTOCOL @th,384,16 >= LOW @th,384,16 <= HIGH drop
		d.rule(c, f6.match(), quotes(quotedProto6, quotedPort6, p), Drop())
	}
}

func quote(offset, size uint32) *expr.Payload {
	return &expr.Payload{DestRegister: Register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

// quotes is the condition that a packet from one of the ports is quoted.
func quotes(proto, port uint32, p service.Ports) Exprs {
	limit := func(op expr.CmpOp, port uint16) *expr.Cmp {
		return &expr.Cmp{Op: op, Register: Register, Data: binary.BigEndian.AppendUint16(nil, port)}
	}
	es := Exprs{quote(proto, 1), Equal([]byte{byte(p.Proto)}), quote(port, 2)}
	if p.Low == p.High {
		return append(es, limit(expr.CmpOpEq, p.Low))
	}
	return append(es, limit(expr.CmpOpGte, p.Low), limit(expr.CmpOpLte, p.High))
}
