package nftables

import (
	"encoding/binary"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// Pieces of rules. Each is what stands in the comment above it in nft's words, so that a
// rule reads like the line that nft would print.

type Exprs = []expr.Any

// first is the 32-bit register in which a key begins; its fields follow, each padded to
// whole registers. Single values use the same one.
const Register = unix.NFT_REG32_00

// family is what differs between rules for IPv4 and for IPv6.
type family struct {
	proto          byte
	size           uint32 // of an address
	saddr, daddr   uint32 // their offsets in the header
	grants, reach  *nft.Set
	met, carried   *nft.Set
	targets, extra *nft.Set
}

func (o *objects) families() [2]*family {
	return [2]*family{
		{unix.NFPROTO_IPV4, 4, 12, 16, o.Grants4, o.reach4, o.met4, o.Carried4, o.targets4, o.addresses4},
		{unix.NFPROTO_IPV6, 16, 8, 24, o.Grants6, o.reach6, o.met6, o.Carried6, o.targets6, o.addresses6},
	}
}

// heading says which end of a packet is ours: the destination of what comes in, the source of what
// goes out. The other end is the peer.
type heading bool

const (
	inward  heading = false
	outward heading = true
)

func (f *family) peer(w heading) uint32 {
	if w == outward {
		return f.daddr
	}
	return f.saddr
}

func (f *family) own(w heading) uint32 {
	if w == outward {
		return f.saddr
	}
	return f.daddr
}

func (w heading) ownPort() uint32 {
	if w == outward {
		return Sport
	}
	return Dport
}

func (w heading) peerPort() uint32 {
	if w == outward {
		return Dport
	}
	return Sport
}

func (w heading) device() expr.MetaKey {
	if w == outward {
		return expr.MetaKeyOIF
	}
	return expr.MetaKeyIIF
}

func Rule(parts ...Exprs) Exprs { return slices.Concat(parts...) }

func Native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func Equal(data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: Register, Data: data}
}

func Meta(k expr.MetaKey, data []byte) Exprs {
	return Exprs{&expr.Meta{Key: k, Register: Register}, Equal(data)}
}

// iif lo
func fromLoopback() Exprs { return Meta(expr.MetaKeyIIF, Native(loopback)) }

// oif lo
func toLoopback() Exprs { return Meta(expr.MetaKeyOIF, Native(loopback)) }

// loopback is the index of lo in every network namespace (net/core/dev.c, LOOPBACK_IFINDEX).
const loopback = 1

// iifname NAME, oifname NAME
func ifname(k expr.MetaKey, name string) Exprs {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return Meta(k, b)
}

// meta iifkind "KIND", meta oifkind "KIND"
func linkKind(k expr.MetaKey, kind string) Exprs {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, kind)
	return Meta(k, b)
}

// Keys of linux/netfilter/nf_tables.h (enum nft_meta_keys).
const (
	metaIIFKind expr.MetaKey = 26
	metaOIFKind expr.MetaKey = 27
)

// meta nfproto ipv4, meta nfproto ipv6
func (f *family) match() Exprs { return Meta(expr.MetaKeyNFPROTO, []byte{f.proto}) }

// meta l4proto PROTO
func L4Proto(p service.Proto) Exprs { return Meta(expr.MetaKeyL4PROTO, []byte{byte(p)}) }

// meta l4proto != tcp meta l4proto != udp
func neitherTCPNorUDP() Exprs {
	return Exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Register},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{byte(service.TCP)}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: []byte{byte(service.UDP)}},
	}
}

// ct direction reply
func IsReply() Exprs {
	return Exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: Register}, Equal([]byte{1})}
}

// ct direction original
func isOriginal() Exprs {
	return Exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: Register}, Equal([]byte{0})}
}

// ct state STATES
func CTState(states uint32) Exprs {
	return Exprs{
		&expr.Ct{Key: expr.CtKeySTATE, Register: Register},
		and(Native(states)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: Native(0)},
	}
}

// handed matches packets that have a socket before the kernel's lookup: assigned by TPROXY or a BPF
// program, or found early because a connected socket owns the flow.
//
//	meta skuid != 4294967295
func handed() Exprs {
	const nobody = 1<<32 - 1 // no user has this number; without a socket there is none to compare
	return Exprs{&expr.Meta{Key: expr.MetaKeySKUID, Register: Register}, &expr.Cmp{Op: expr.CmpOpNeq,
		Register: Register, Data: Native(nobody)}}
}

// socket transparent 1
func transparent() Exprs {
	return Exprs{&expr.Socket{Key: expr.SocketKeyTransparent, Register: Register}, Equal([]byte{1})}
}

func and(mask []byte) *expr.Bitwise {
	return &expr.Bitwise{
		SourceRegister: Register, DestRegister: Register,
		Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
	}
}

// ct mark and MARK == MARK
func ctMarked(mark uint32) Exprs {
	return Exprs{&expr.Ct{Key: expr.CtKeyMARK, Register: Register}, and(Native(mark)), Equal(Native(mark))}
}

// ct mark and MARK != MARK
func ctNotMarked(mark uint32) Exprs {
	es := ctMarked(mark)
	es[len(es)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return es
}

// ct mark set ct mark and ~MARK
func clearCtMark(mark uint32) Exprs {
	return Exprs{
		&expr.Ct{Key: expr.CtKeyMARK, Register: Register},
		and(Native(^mark)),
		&expr.Ct{Key: expr.CtKeyMARK, Register: Register, SourceRegister: true},
	}
}

// meta mark set meta mark or MARK
func setMark(mark uint32) Exprs {
	return Exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Register},
		&expr.Bitwise{SourceRegister: Register, DestRegister: Register, Len: 4, Mask: Native(^mark), Xor: Native(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: Register, SourceRegister: true},
	}
}

// ct status STATUS
func ctStatusIs(bits uint32) Exprs {
	return Exprs{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: Register},
		and(Native(bits)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: Native(0)},
	}
}

// Bits of linux/netfilter/nf_conntrack_common.h (enum ip_conntrack_status).
const statusSNAT, statusDNAT = 1 << 4, 1 << 5

// meta mark and MARK == MARK
func marked(mark uint32) Exprs {
	return Exprs{&expr.Meta{Key: expr.MetaKeyMARK, Register: Register}, and(Native(mark)), Equal(Native(mark))}
}

// ct mark set ct mark or MARK
func setCtMark(mark uint32) Exprs {
	return Exprs{
		&expr.Ct{Key: expr.CtKeyMARK, Register: Register},
		&expr.Bitwise{SourceRegister: Register, DestRegister: Register, Len: 4, Mask: Native(^mark), Xor: Native(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: Register, SourceRegister: true},
	}
}

// tcp flags and MASK == VALUE
func TCPFlags(mask, value byte) Exprs {
	load := &expr.Payload{DestRegister: Register, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1}
	return Rule(L4Proto(service.TCP), Exprs{load, and([]byte{mask}), Equal([]byte{value})})
}

// tcp flags and MASK != VALUE
func tcpFlagsNot(mask, value byte) Exprs {
	es := TCPFlags(mask, value)
	es[len(es)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return es
}

const (
	Fin, Syn, Rst, Ack = 1, 2, 4, 16
)

// Port reads a port of the transport header: th sport is at 0, th dport at 2.
func Port(register, offset uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

const Sport, Dport = 0, 2

// udpChecksum is where UDP's checksum is (RFC 768).
const udpChecksum = 6

// Where the fields of an IPv6 routing header are (RFC 8200, 4.4).
const routeType, routeLeft = 2, 3

// rt type, rt seg-left
func route(field uint32) Exprs {
	return Exprs{&expr.Exthdr{DestRegister: Register, Type: unix.IPPROTO_ROUTING, Offset: field,
		Len: 1, Op: expr.ExthdrOpIpv6}}
}

// udp sport PORT, udp dport PORT
func UDPPort(offset uint32, number uint16) Exprs {
	return Rule(L4Proto(service.UDP), Exprs{Port(Register, offset), Equal(binary.BigEndian.AppendUint16(nil, number))})
}

func (f *family) address(register, offset uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

func lookup(s *nft.Set, invert bool) *expr.Lookup {
	return &expr.Lookup{SourceRegister: Register, SetName: s.Name, SetID: s.ID, Invert: invert}
}

// meta l4proto . th dport @SET, or != @SET (or th sport)
func (o *objects) portIn(s *nft.Set, offset uint32, invert bool) Exprs {
	return Exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Register},
		Port(Register+1, offset),
		lookup(s, invert),
	}
}

// key is what a set is asked for: fields of a packet, one behind the other.
type key struct {
	Exprs
	next uint32 // the register of the next field
}

func (f *family) key() *key { return &key{f.match(), Register} }

func (k *key) address(f *family, offset uint32) *key {
	k.Exprs = append(k.Exprs, f.address(k.next, offset))
	k.next += f.size / 4
	return k
}

func (k *key) meta(m expr.MetaKey) *key {
	k.Exprs = append(k.Exprs, &expr.Meta{Key: m, Register: k.next})
	k.next++
	return k
}

func (k *key) port(offset uint32) *key {
	k.Exprs = append(k.Exprs, Port(k.next, offset))
	k.next++
	return k
}

// in is the condition that the set has the key; notIn, that it has not.
func (k *key) in(s *nft.Set) Exprs    { return append(k.Exprs, lookup(s, false)) }
func (k *key) notIn(s *nft.Set) Exprs { return append(k.Exprs, lookup(s, true)) }

// update puts the key into the set, or gives it its whole time again. Where the set is full the
// rule ends there.
func (k *key) update(s *nft.Set) Exprs {
	return append(k.Exprs, &expr.Dynset{
		SrcRegKey: Register, SetName: s.Name, SetID: s.ID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: guard.Remembered,
	})
}

// ip saddr . meta l4proto . th dport (outwards daddr and sport)
func (f *family) source(w heading) *key {
	return f.key().address(f, f.peer(w)).meta(expr.MetaKeyL4PROTO).port(w.ownPort())
}

// ip saddr . ip daddr . meta l4proto . th dport (outwards the other way round)
func (f *family) sourceAndTarget(w heading) *key {
	return f.key().address(f, f.peer(w)).address(f, f.own(w)).meta(expr.MetaKeyL4PROTO).port(w.ownPort())
}

// ip daddr . meta l4proto . th dport (outwards saddr and sport)
func (f *family) target(w heading) *key {
	return f.key().address(f, f.own(w)).meta(expr.MetaKeyL4PROTO).port(w.ownPort())
}

// iif . ip6 saddr . meta l4proto . th dport (outwards oif, daddr and sport)
func (f *family) linkAndSource(w heading) *key {
	return f.key().meta(w.device()).address(f, f.peer(w)).meta(expr.MetaKeyL4PROTO).port(w.ownPort())
}

// ip saddr . ip daddr . meta l4proto . th sport . th dport @carried4 (outwards the other way round)
func (f *family) carries(w heading) Exprs {
	return f.key().address(f, f.peer(w)).address(f,
		f.own(w)).meta(expr.MetaKeyL4PROTO).port(w.peerPort()).port(w.ownPort()).in(f.carried)
}

// ip6 saddr fe80::/10 (outwards daddr)
func (f *family) linkLocal(w heading) Exprs {
	mask, net := make([]byte, 16), make([]byte, 16)
	copy(mask, []byte{0xff, 0xc0})
	copy(net, []byte{0xfe, 0x80})
	return Rule(f.match(), Exprs{f.address(Register, f.peer(w)), and(mask), Equal(net)})
}

// ip daddr @addresses4 (or saddr, ip6 and @addresses6)
func (f *family) toExtra(addr uint32) Exprs {
	return Rule(f.match(), Exprs{f.address(Register, addr), lookup(f.extra, false)})
}

// ip daddr != @addresses4 (or saddr, ip6 and @addresses6)
func (f *family) notExtra(addr uint32) Exprs {
	return Rule(f.match(), Exprs{f.address(Register, addr), lookup(f.extra, true)})
}

// fib daddr type, fib saddr type
func fib() *expr.Fib { return &expr.Fib{Register: Register, ResultADDRTYPE: true, FlagDADDR: true} }
func fibSource() *expr.Fib {
	return &expr.Fib{Register: Register, ResultADDRTYPE: true, FlagSADDR: true}
}

// fib daddr type TYPE, fib saddr type TYPE
func isType(f *expr.Fib, t uint32) Exprs { return Exprs{f, Equal(Native(t))} }

// fib daddr type != TYPE ..., fib saddr type != TYPE ...
func isNoType(f *expr.Fib, types ...uint32) Exprs {
	es := Exprs{f}
	for _, t := range types {
		es = append(es, &expr.Cmp{Op: expr.CmpOpNeq, Register: Register, Data: Native(t)})
	}
	return es
}

// ownTypes are those of addresses that are this host's alone.
var ownTypes = []uint32{unix.RTN_LOCAL, unix.RTN_ANYCAST}

func verdict(k expr.VerdictKind) Exprs { return Exprs{&expr.Verdict{Kind: k}} }

func Accept() Exprs { return verdict(expr.VerdictAccept) }
func Drop() Exprs   { return verdict(expr.VerdictDrop) }

func jump(c *nft.Chain) Exprs {
	return Exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

// enter goes to a chain and does not come back.
func enter(c *nft.Chain) Exprs {
	return Exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}
}

func back() Exprs { return verdict(expr.VerdictReturn) }

// reject with tcp reset, reject with icmpx port-unreachable
func resetTCP() Exprs {
	return Rule(L4Proto(service.TCP), Exprs{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
}
func unreachable() Exprs {
	return Exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}
