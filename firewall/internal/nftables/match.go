package nftables

import (
	"encoding/binary"
	"fmt"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/keys/service"
)

// Part is a piece of a rule: its text for nft, and its expressions for the kernel. So each rule is written once,
// printed as text and loaded as expressions.
type Part struct {
	Text  string
	Exprs []expr.Any
}

// Rule joins parts.
func Rule(parts ...Part) Part {
	var all Part
	var words []string
	for _, p := range parts {
		if p.Text != "" {
			words = append(words, p.Text)
		}
		all.Exprs = append(all.Exprs, p.Exprs...)
	}
	all.Text = strings.Join(words, " ")
	return all
}

// part returns a piece of a rule with its text.
func part(text string, exprs ...expr.Any) Part { return Part{text, exprs} }

// Raw returns a piece of a rule without text.
func Raw(exprs ...expr.Any) Part { return Part{"", exprs} }

// Register is the 32-bit register in which a key begins; its fields follow, each padded to whole registers. Single
// values use it too.
const Register = unix.NFT_REG32_00

// Native returns v in the byte order of this machine.
func Native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// Equal compares the register with data.
func Equal(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: Register, Data: data}
}

func notEqual(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: data}
}

func and(mask []byte) *expr.Bitwise {
	return &expr.Bitwise{
		SourceRegister: Register, DestRegister: Register,
		Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
	}
}

func loadMeta(k expr.MetaKey) *expr.Meta { return &expr.Meta{Key: k, Register: Register} }
func loadCt(k expr.CtKey) *expr.Ct       { return &expr.Ct{Key: k, Register: Register} }

// Meta matches packets with a property equal to data.
func Meta(k expr.MetaKey, data []byte) Part { return Raw(loadMeta(k), Equal(data)) }

func fromLoopback() Part { return part("iif lo", loadMeta(expr.MetaKeyIIF), Equal(Native(loopback))) }
func toLoopback() Part   { return part("oif lo", loadMeta(expr.MetaKeyOIF), Equal(Native(loopback))) }

// loopback is the index of lo in every network namespace (net/core/dev.c, LOOPBACK_IFINDEX).
const loopback = 1

func iifname(name string) Part { return named("iifname", expr.MetaKeyIIFNAME, name) }
func oifname(name string) Part { return named("oifname", expr.MetaKeyOIFNAME, name) }

func named(text string, k expr.MetaKey, name string) Part {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return part(fmt.Sprintf("%s %q", text, name), loadMeta(k), Equal(b))
}

// match matches packets of the family.
func (f *family) match() Part {
	p := f.implied()
	p.Text = "meta nfproto " + map[string]string{"ip": "ipv4", "ip6": "ipv6"}[f.name]
	return p
}

// implied is match without its text, which nft derives from what follows.
func (f *family) implied() Part { return Meta(expr.MetaKeyNFPROTO, []byte{f.proto}) }

// L4Proto matches packets of the protocol.
func L4Proto(p service.Proto) Part {
	name := p.String()
	switch p {
	case unix.IPPROTO_ICMP:
		name = "icmp"
	case unix.IPPROTO_ICMPV6:
		name = "ipv6-icmp"
	}
	return part("meta l4proto "+name, loadMeta(expr.MetaKeyL4PROTO), Equal([]byte{byte(p)}))
}

func neitherTCPNorUDP() Part {
	return part("meta l4proto != tcp meta l4proto != udp", loadMeta(expr.MetaKeyL4PROTO),
		notEqual([]byte{byte(service.TCP)}), notEqual([]byte{byte(service.UDP)}))
}

// IsReply matches packets towards the end that began the flow.
func IsReply() Part {
	return part("ct direction reply", loadCt(expr.CtKeyDIRECTION), Equal([]byte{1}))
}

func isOriginal() Part {
	return part("ct direction original", loadCt(expr.CtKeyDIRECTION), Equal([]byte{0}))
}

// CTState matches packets whose flow is in one of the states (expr.CtStateBitNEW and others).
func CTState(states uint32) Part {
	var names []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{
		{expr.CtStateBitINVALID, "invalid"}, {expr.CtStateBitNEW, "new"}, {expr.CtStateBitRELATED, "related"},
		{expr.CtStateBitESTABLISHED, "established"}, {expr.CtStateBitUNTRACKED, "untracked"},
	} {
		if states&s.bit != 0 {
			names = append(names, s.name)
		}
	}
	return part("ct state "+strings.Join(names, ","), loadCt(expr.CtKeySTATE), and(Native(states)), notEqual(Native(0)))
}

// handed matches packets that have a socket before the kernel's lookup: assigned by TPROXY or a BPF
// program, or found early because a connected socket owns the flow.
func handed() Part {
	const nobody = 1<<32 - 1 // not a valid user; without a socket the rule does not match
	return part("meta skuid != 4294967295", loadMeta(expr.MetaKeySKUID), notEqual(Native(nobody)))
}

func transparent() Part {
	return part("socket transparent 1", &expr.Socket{Key: expr.SocketKeyTransparent, Register: Register},
		Equal([]byte{1}))
}

// hex formats a mark for nft.
func hex(mark uint32) string { return fmt.Sprintf("%#08x", mark) }

func ctMarked(mark uint32) Part {
	return part(fmt.Sprintf("ct mark & %[1]s == %[1]s", hex(mark)), loadCt(expr.CtKeyMARK), and(Native(mark)),
		Equal(Native(mark)))
}

func ctNotMarked(mark uint32) Part {
	return part(fmt.Sprintf("ct mark & %[1]s != %[1]s", hex(mark)), loadCt(expr.CtKeyMARK), and(Native(mark)),
		notEqual(Native(mark)))
}

func clearCtMark(mark uint32) Part {
	return part("ct mark set ct mark & "+hex(^mark), loadCt(expr.CtKeyMARK), and(Native(^mark)),
		&expr.Ct{Key: expr.CtKeyMARK, Register: Register, SourceRegister: true})
}

// or sets the bits of the mark.
func or(mark uint32) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: Register, DestRegister: Register, Len: 4, Mask: Native(^mark), Xor: Native(mark)}
}

func setMark(mark uint32) Part {
	return part("meta mark set meta mark | "+hex(mark), loadMeta(expr.MetaKeyMARK), or(mark),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Register, SourceRegister: true})
}

func setCtMark(mark uint32) Part {
	return part("ct mark set ct mark | "+hex(mark), loadCt(expr.CtKeyMARK), or(mark),
		&expr.Ct{Key: expr.CtKeyMARK, Register: Register, SourceRegister: true})
}

func marked(mark uint32) Part {
	return part(fmt.Sprintf("meta mark & %[1]s == %[1]s", hex(mark)), loadMeta(expr.MetaKeyMARK), and(Native(mark)),
		Equal(Native(mark)))
}

// notMarked matches all other packets.
func notMarked(mark uint32) Part {
	return part(fmt.Sprintf("meta mark & %[1]s != %[1]s", hex(mark)), loadMeta(expr.MetaKeyMARK), and(Native(mark)),
		notEqual(Native(mark)))
}

// translated matches packets of flows with a translated address.
func translated() Part {
	return part("ct status snat,dnat", loadCt(expr.CtKeySTATUS), and(Native(statusSNAT|statusDNAT)), notEqual(Native(0)))
}

// Bits of linux/netfilter/nf_conntrack_common.h (enum ip_conntrack_status).
const statusSNAT, statusDNAT = 1 << 4, 1 << 5

// Flags of TCP.
const (
	Fin, Syn, Rst, Ack = 1, 2, 4, 16
)

// flags formats TCP flags for nft.
func flags(bits byte) string {
	var names []string
	for _, f := range []struct {
		bit  byte
		name string
	}{{Fin, "fin"}, {Syn, "syn"}, {Rst, "rst"}, {Ack, "ack"}} {
		if bits&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	switch len(names) {
	case 0:
		return "0"
	case 1:
		return names[0]
	}
	return "(" + strings.Join(names, " | ") + ")"
}

// TCPFlags matches segments whose flags under mask equal value.
func TCPFlags(mask, value byte) Part { return tcpFlags("==", mask, Equal([]byte{value})) }

func tcpFlagsNot(mask, value byte) Part { return tcpFlags("!=", mask, notEqual([]byte{value})) }

func tcpFlags(op string, mask byte, c *expr.Cmp) Part {
	load := &expr.Payload{DestRegister: Register, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1}
	p := Rule(L4Proto(service.TCP), Raw(load, and([]byte{mask}), c))
	p.Text = fmt.Sprintf("tcp flags & %s %s %s", flags(mask), op, flags(c.Data[0]))
	return p
}

// Port loads a port of the transport header, at Sport or Dport.
func Port(register, offset uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// Offsets of ports in the transport header.
const Sport, Dport = 0, 2

// portName returns nft's word for a port.
func portName(offset uint32) string {
	if offset == Sport {
		return "sport"
	}
	return "dport"
}

// UDPPort matches datagrams with that number as one of their ports.
func UDPPort(offset uint32, number uint16) Part {
	p := Rule(L4Proto(service.UDP), Raw(Port(Register, offset), Equal(binary.BigEndian.AppendUint16(nil, number))))
	p.Text = fmt.Sprintf("udp %s %d", portName(offset), number)
	return p
}

func hasPort() Part {
	return part("th dport != 0", Port(Register, Dport), notEqual([]byte{0, 0}))
}

// withoutChecksum matches datagrams without a checksum (RFC 768).
func withoutChecksum() Part {
	return part("@th,48,16 0", Port(Register, 6), Equal([]byte{0, 0}))
}

// routeType matches an IPv6 routing header of that type; segmentsLeft matches one that has not been followed to its
// end (RFC 8200, 4.4).
func routeType(kind byte) Part {
	return part(fmt.Sprintf("rt type %d", kind), route(2), Equal([]byte{kind}))
}
func segmentsLeft() Part { return part("rt seg-left != 0", route(3), notEqual([]byte{0})) }

func route(field uint32) *expr.Exthdr {
	return &expr.Exthdr{DestRegister: Register, Type: unix.IPPROTO_ROUTING, Offset: field, Len: 1, Op: expr.ExthdrOpIpv6}
}

func toOthers() Part {
	return part("meta pkttype != host", loadMeta(expr.MetaKeyPKTTYPE), notEqual([]byte{unix.PACKET_HOST}))
}

// end selects the address whose type is matched.
type end bool

const (
	destination end = false
	origin      end = true
)

func (e end) fib() *expr.Fib {
	return &expr.Fib{Register: Register, ResultADDRTYPE: true, FlagDADDR: e == destination, FlagSADDR: e == origin}
}

func (e end) word() string {
	if e == origin {
		return "fib saddr type"
	}
	return "fib daddr type"
}

// typeNames are nft's words for route types.
var typeNames = map[uint32]string{unix.RTN_LOCAL: "local", unix.RTN_ANYCAST: "anycast", unix.RTN_BROADCAST: "broadcast",
	unix.RTN_MULTICAST: "multicast", unix.RTN_UNICAST: "unicast"}

// isType matches an address of that type (unix.RTN_LOCAL and others) in the routing table.
func isType(e end, t uint32) Part {
	return part(e.word()+" "+typeNames[t], e.fib(), Equal(Native(t)))
}

// isNoType matches an address of none of these types.
func isNoType(e end, types ...uint32) Part {
	all := Raw(e.fib())
	for _, t := range types {
		all = Rule(all, part(e.word()+" != "+typeNames[t], notEqual(Native(t))))
	}
	return all
}

// byAnotherWay matches packets that arrive by another interface than the one routing uses for their source.
func byAnotherWay() Part {
	return part("fib saddr . iif oif missing",
		&expr.Fib{Register: Register, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}, Equal(Native(0)))
}

// ownTypes are the types of addresses that only this host has.
var ownTypes = []uint32{unix.RTN_LOCAL, unix.RTN_ANYCAST}

func verdict(text string, k expr.VerdictKind, chain string) Part {
	return part(text, &expr.Verdict{Kind: k, Chain: chain})
}

// Accept lets a packet pass this chain's hook.
func Accept() Part { return verdict("accept", expr.VerdictAccept, "") }

// Drop discards a packet.
func Drop() Part { return verdict("drop", expr.VerdictDrop, "") }

func back() Part { return verdict("return", expr.VerdictReturn, "") }

func jump(c *nft.Chain) Part { return verdict("jump "+c.Name, expr.VerdictJump, c.Name) }

// enter goes to a chain without returning.
func enter(c *nft.Chain) Part { return verdict("goto "+c.Name, expr.VerdictGoto, c.Name) }

func notrack() Part { return part("notrack", &expr.Notrack{}) }
func count() Part   { return part("counter", &expr.Counter{}) }

func resetTCP() Part {
	return part("reject with tcp reset", &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

func unreachable() Part {
	return part("reject with icmpx type port-unreachable",
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
}

// toPort0 leads a flow to port 0 of this host; toSamePort, to the port it was sent to.
func toPort0() Part {
	return part("dnat to :0", &expr.Immediate{Register: Register, Data: []byte{0, 0}}, dnat())
}
func toSamePort() Part { return part("dnat to :udp dport", Port(Register, Dport), dnat()) }

func dnat() *expr.NAT {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_INET, RegProtoMin: Register, Specified: true}
}
