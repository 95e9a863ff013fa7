package firewall

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
)

// Packets of the law's cases, made byte by byte: no kernel would send most of them.

// shape is the type of a packet.
type shape uint8

const (
	shapeSYN shape = iota
	shapeSYNACK
	shapeACK
	shapeRST
	shapeData
	shapeFIN
	shapeNull // a segment without flags
	shapeUDP
	shapeUnreachable // ICMP error about a packet of the guarded port
	shapeTooBig
	shapeServer // no packet: the guarded server sends to the stranger
)

var shapeNames = [...]string{"SYN", "SYN+ACK", "ACK", "RST", "data", "FIN", "null", "UDP", "ICMP unreachable",
	"ICMP too big", "the server speaks"}

func (s shape) String() string { return shapeNames[s] }

func (s shape) isError() bool { return s == shapeUnreachable || s == shapeTooBig }

var tcpFlagsOf = map[shape]byte{
	shapeSYN: nftables.Syn, shapeSYNACK: nftables.Syn | nftables.Ack, shapeACK: nftables.Ack,
	shapeRST: nftables.Rst | nftables.Ack, shapeData: 8 | nftables.Ack, shapeFIN: nftables.Fin | nftables.Ack,
	shapeNull: 0,
}

// pack is how a packet is wrapped.
type pack uint8

const (
	packPlain       pack = iota
	packOptions          // IP options; hop-by-hop options
	packDest             // IPv6 destination options
	packRouting          // IPv6 routing header at its end
	packRouted           // IPv6 routing header of type 0, with a segment left
	packHalves           // two fragments
	packTiny             // two fragments, the first with only the ports
	packReversed         // two fragments, the last one first
	packOverlap          // the second fragment covers the first with another port
	packAtomic           // IPv6 fragment header on a whole packet
	packPriority         // VLAN tag 0, which means no VLAN
	packVLAN             // VLAN tag 7
	packSourceRoute      // IPv4 source route at its end
)

var packNames = [...]string{"", "with options", "with destination options", "with a routing header",
	"with a route to go", "in fragments", "in tiny fragments",
	"in fragments, the last first", "in overlapping fragments", "as atomic fragment", "with VLAN tag 0",
	"with VLAN tag 7", "with a source route"}

func (p pack) String() string { return packNames[p] }

// packs are the wrappings of a family.
func packs(six bool) []pack {
	if six {
		return []pack{packPlain, packOptions, packDest, packRouting, packRouted, packHalves, packTiny, packReversed,
			packOverlap, packAtomic, packPriority, packVLAN}
	}
	return []pack{packPlain, packOptions, packHalves, packTiny, packReversed, packOverlap, packPriority,
		packVLAN, packSourceRoute}
}

// cookie begins each payload of a case, and serverSays each of a server.
const (
	cookie     = "law:"
	serverSays = "srv:"
)

// lawSeq is the sequence number of a case's segments, which identifies them when they come back.
func lawSeq(port uint16, step int) uint32 { return 'L'<<24 | uint32(port)<<8 | uint32(step) }

func isLawSeq(seq uint32, port uint16) bool { return seq>>8 == 'L'<<16|uint32(port) }

// packet is one packet of a case.
type packet struct {
	shape
	pack
	from, to netip.AddrPort
	seq, ack uint32
	id       uint32 // of its fragments
}

// fragmentID is the last one used: two datagrams with the same id must not mix.
var fragmentID atomic.Uint32

// bytes returns the IP packets that it makes.
func (p *packet) bytes() [][]byte {
	src, dst := p.from.Addr(), p.to.Addr()
	switch {
	case p.shape.isError():
		return p.errorBytes()
	case p.shape == shapeUDP:
		return p.wrap(unix.IPPROTO_UDP, udpSegment(src, dst, p.from.Port(), p.to.Port(), cookie+"datagram"))
	}
	payload := ""
	if p.shape == shapeData {
		payload = cookie + "data"
	}
	return p.wrap(unix.IPPROTO_TCP, tcpSegment(p.from, p.to, tcpFlagsOf[p.shape], p.seq, p.ack, payload))
}

// errorBytes returns an ICMP error about a packet that the guarded port would have sent.
func (p *packet) errorBytes() [][]byte {
	inner := packet{shape: shapeUDP, from: p.to, to: p.from}
	if p.seq != 0 { // TCP
		inner = packet{shape: shapeACK, from: p.to, to: p.from, seq: p.ack, ack: p.seq}
	}
	if p.pack == packOptions || p.pack == packDest { // odd headers inside, which guards often ignore
		inner.pack = p.pack
	}
	quoted := inner.bytes()[0]
	six := p.from.Addr().Is6()
	head := []byte{3, 3, 0, 0, 0, 0, 0, 0}
	switch {
	case six && p.shape == shapeTooBig:
		head = []byte{2, 0, 0, 0, 0, 0, 5, 0}
	case six:
		head[0], head[1] = 1, 4
	case p.shape == shapeTooBig:
		head = []byte{3, 4, 0, 0, 0, 0, 5, 0}
	}
	b := append(head, quoted...)
	outer := *p
	if inner.pack != packPlain {
		outer.pack = packPlain
	}
	if !six {
		binary.BigEndian.PutUint16(b[2:], checksum(0, b))
		return outer.wrap(unix.IPPROTO_ICMP, b)
	}
	binary.BigEndian.PutUint16(b[2:], checksum(pseudo(p.from.Addr(), p.to.Addr(), unix.IPPROTO_ICMPV6, len(b)), b))
	return outer.wrap(unix.IPPROTO_ICMPV6, b)
}

func udpSegment(src, dst netip.Addr, sport, dport uint16, payload string) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	sum := checksum(pseudo(src, dst, unix.IPPROTO_UDP, len(b)), b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

func tcpSegment(from, to netip.AddrPort, flags byte, seq, ack uint32, payload string) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, 5<<4, flags, 0xfa, 0xf0, 0, 0, 0, 0)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(pseudo(from.Addr(), to.Addr(), unix.IPPROTO_TCP, len(b)), b))
	return b
}

// pseudo is the sum of the pseudo header.
func pseudo(src, dst netip.Addr, proto, length int) uint32 {
	sum := uint32(proto) + uint32(length)
	for _, a := range [][]byte{src.AsSlice(), dst.AsSlice()} {
		for i := 0; i < len(a); i += 2 {
			sum += uint32(a[i])<<8 | uint32(a[i+1])
		}
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// piece is a fragment: its offset and its content.
type piece struct {
	at   int
	data []byte
	more bool
}

func cut(b []byte, at int) []piece { return []piece{{0, b[:at], true}, {at, b[at:], false}} }

func (p *packet) pieces(segment []byte) []piece {
	switch p.pack {
	case packHalves:
		return cut(segment, len(segment)/2&^7)
	case packTiny:
		return cut(segment, 8)
	case packReversed:
		c := cut(segment, 8)
		return []piece{c[1], c[0]}
	case packOverlap:
		// The first fragment is for an open port; the second begins at the same offset.
		open := append([]byte(nil), segment...)
		binary.BigEndian.PutUint16(open[2:], openPort)
		return []piece{{0, open[:16], true}, {0, segment[:8], true}, {8, segment[8:], false}}
	}
	return []piece{{0, segment, false}}
}

// wrap makes the IP packets of a segment.
func (p *packet) wrap(proto byte, segment []byte) [][]byte {
	p.id = fragmentID.Add(1)
	var all [][]byte
	for _, f := range p.pieces(segment) {
		if p.from.Addr().Is6() {
			all = append(all, p.ipv6(proto, f))
			continue
		}
		all = append(all, p.ipv4(proto, f))
	}
	return all
}

func (p *packet) ipv4(proto byte, f piece) []byte {
	var options []byte
	switch p.pack {
	case packOptions:
		options = []byte{1, 1, 1, 0}
	case packSourceRoute: // loose, with its pointer past the end
		options = append([]byte{131, 7, 8}, append(p.to.Addr().AsSlice(), 0)...)
	}
	size := 20 + len(options)
	b := make([]byte, size, size+len(f.data))
	b[0] = 4<<4 | byte(size/4)
	binary.BigEndian.PutUint16(b[2:], uint16(size+len(f.data)))
	binary.BigEndian.PutUint16(b[4:], uint16(p.id))
	binary.BigEndian.PutUint16(b[6:], fragmentWord(f.at/8, f.more))
	b[8], b[9] = 64, proto
	copy(b[12:], p.from.Addr().AsSlice())
	copy(b[16:], p.to.Addr().AsSlice())
	copy(b[20:], options)
	binary.BigEndian.PutUint16(b[10:], checksum(0, b))
	return append(b, f.data...)
}

func fragmentWord(units int, more bool) uint16 {
	if more {
		return uint16(units) | 0x2000
	}
	return uint16(units)
}

func (p *packet) ipv6(proto byte, f piece) []byte {
	var ext []byte
	next := proto
	switch p.pack {
	case packOptions:
		next, ext = unix.IPPROTO_HOPOPTS, []byte{proto, 0, 1, 4, 0, 0, 0, 0}
	case packDest:
		next, ext = unix.IPPROTO_DSTOPTS, []byte{proto, 0, 1, 4, 0, 0, 0, 0}
	case packRouting: // type 4 (RFC 8754), no segment left
		next = unix.IPPROTO_ROUTING
		ext = append([]byte{proto, 2, 4, 0, 0, 0, 0, 0}, p.to.Addr().AsSlice()...)
	case packRouted:
		next = unix.IPPROTO_ROUTING
		ext = append([]byte{proto, 2, 0, 1, 0, 0, 0, 0}, p.to.Addr().AsSlice()...)
	case packHalves, packTiny, packReversed, packOverlap, packAtomic:
		next, ext = unix.IPPROTO_FRAGMENT, []byte{proto, 0}
		word := uint16(f.at)
		if f.more {
			word |= 1
		}
		ext = binary.BigEndian.AppendUint16(ext, word)
		ext = binary.BigEndian.AppendUint32(ext, p.id)
	}
	b := make([]byte, 40, 40+len(ext)+len(f.data))
	b[0], b[6], b[7] = 6<<4, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(ext)+len(f.data)))
	copy(b[8:], p.from.Addr().AsSlice())
	copy(b[24:], p.to.Addr().AsSlice())
	return append(append(b, ext...), f.data...)
}
