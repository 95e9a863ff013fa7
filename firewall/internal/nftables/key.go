package nftables

import (
	"fmt"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
)

// family is how rules for IPv4 and IPv6 differ.
type family struct {
	proto          byte
	name           string // of the header, in nft's words
	size           uint32 // of an address
	saddr, daddr   uint32 // their offsets in the header
	grants, reach  *nft.Set
	met, carried   *nft.Set
	targets, extra *nft.Set
	away           *nft.Set
}

func (o *objects) families() [2]*family {
	return [2]*family{
		{unix.NFPROTO_IPV4, "ip", 4, 12, 16, o.Grants4, o.reach4, o.met4, o.Carried4, o.targets4, o.addresses4,
			o.away4},
		{unix.NFPROTO_IPV6, "ip6", 16, 8, 24, o.Grants6, o.reach6, o.met6, o.Carried6, o.targets6, o.addresses6,
			o.away6},
	}
}

// heading selects the end of a packet that is ours: the destination of what comes in, the source of what goes out.
// The other end is the peer.
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

func (w heading) deviceName() string {
	if w == outward {
		return "oif"
	}
	return "iif"
}

func (w heading) device() expr.MetaKey {
	if w == outward {
		return expr.MetaKeyOIF
	}
	return expr.MetaKeyIIF
}

func (f *family) address(register, offset uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

// addressName returns nft's word for an address.
func (f *family) addressName(offset uint32) string {
	if offset == f.saddr {
		return f.name + " saddr"
	}
	return f.name + " daddr"
}

func lookup(s *nft.Set, invert bool) *expr.Lookup {
	return &expr.Lookup{SourceRegister: Register, SetName: s.Name, SetID: s.ID, Invert: invert}
}

// key is a set's key made of packet fields, one after the other.
type key struct {
	words []string
	exprs []expr.Any
	next  uint32 // the register of the next field
}

func (f *family) key() *key { return &key{nil, f.implied().Exprs, Register} }

func (k *key) add(word string, size uint32, e expr.Any) *key {
	k.words, k.exprs = append(k.words, word), append(k.exprs, e)
	k.next += size / 4
	return k
}

func (k *key) address(f *family, offset uint32) *key {
	return k.add(f.addressName(offset), f.size, f.address(k.next, offset))
}

func (k *key) protocol() *key {
	return k.add("meta l4proto", 4, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: k.next})
}

func (k *key) device(w heading) *key {
	return k.add(w.deviceName(), 4, &expr.Meta{Key: w.device(), Register: k.next})
}

func (k *key) port(offset uint32) *key {
	return k.add("th "+portName(offset), 4, Port(k.next, offset))
}

func (k *key) text() string { return strings.Join(k.words, " . ") }

// in matches packets whose key is in the set; notIn, those whose key is not.
func (k *key) in(s *nft.Set) Part {
	return part(k.text()+" @"+s.Name, append(k.exprs, lookup(s, false))...)
}

func (k *key) notIn(s *nft.Set) Part {
	return part(k.text()+" != @"+s.Name, append(k.exprs, lookup(s, true))...)
}

// update adds the key to the set, or restarts its timeout. If the set is full, the rule ends there.
func (k *key) update(s *nft.Set) Part {
	days := guard.Remembered / (24 * time.Hour)
	return part(fmt.Sprintf("update @%s { %s timeout %dd }", s.Name, k.text(), days), append(k.exprs, &expr.Dynset{
		SrcRegKey: Register, SetName: s.Name, SetID: s.ID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: guard.Remembered,
	})...)
}

// onPort is protocol and port, for instance for the set of guarded ports.
func onPort(offset uint32) *key { return (&key{next: Register}).protocol().port(offset) }

// source is the peer and our port: ip saddr . meta l4proto . th dport inward, daddr and sport outward.
func (f *family) source(w heading) *key {
	return f.key().address(f, f.peer(w)).protocol().port(w.ownPort())
}

// sourceAndTarget adds our address: ip saddr . ip daddr . meta l4proto . th dport inward.
func (f *family) sourceAndTarget(w heading) *key {
	return f.key().address(f, f.peer(w)).address(f, f.own(w)).protocol().port(w.ownPort())
}

// target is our address and port: ip daddr . meta l4proto . th dport inward.
func (f *family) target(w heading) *key {
	return f.key().address(f, f.own(w)).protocol().port(w.ownPort())
}

// linkAndSource is source preceded by the interface: iif . ip6 saddr . meta l4proto . th dport inward.
func (f *family) linkAndSource(w heading) *key {
	return f.key().device(w).address(f, f.peer(w)).protocol().port(w.ownPort())
}

// leaving is an interface of the packet and its destination: oif . ip daddr outward.
func (f *family) leaving(w heading) *key { return f.key().device(w).address(f, f.daddr) }

// carries matches flows that a first load carries.
func (f *family) carries(w heading) Part {
	return f.flow(w).in(f.carried)
}

// linkLocal matches packets with a link-local peer.
func (f *family) linkLocal(w heading) Part {
	mask, net := make([]byte, 16), make([]byte, 16)
	copy(mask, []byte{0xff, 0xc0})
	copy(net, []byte{0xfe, 0x80})
	return Rule(f.implied(), part(f.addressName(f.peer(w))+" fe80::/10", f.address(Register, f.peer(w)), and(mask),
		Equal(net)))
}

// toExtra matches packets with a target's address; notExtra matches all others.
func (f *family) toExtra(addr uint32) Part {
	return f.key().address(f, addr).in(f.extra)
}

func (f *family) notExtra(addr uint32) Part {
	return f.key().address(f, addr).notIn(f.extra)
}

// continues matches fragments without the ports.
func (f *family) continues() Part {
	text, load, mask := "ip frag-off & 0x1fff != 0", expr.Any(&expr.Payload{DestRegister: Register,
		Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2}), []byte{0x1f, 0xff}
	if f.proto == unix.NFPROTO_IPV6 {
		text, load, mask = "frag frag-off != 0", &expr.Exthdr{DestRegister: Register,
			Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}, []byte{0xff, 0xf8}
	}
	return Rule(f.implied(), part(text, load, and(mask), notEqual([]byte{0, 0})))
}
