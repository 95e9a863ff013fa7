package capture

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8

	protoUDP     = 17
	nextFragment = 44
)

// A decoder decodes IP packets into itself, without allocating, so only one reader may use it. It knows the three
// layers below and nothing else: a decoder that continued by port number would let an attacker choose among a hundred
// parsers.
type decoder struct {
	ip4    layers.IPv4
	ip6    layers.IPv6
	udp    layers.UDP
	parse4 *gopacket.DecodingLayerParser
	parse6 *gopacket.DecodingLayerParser
	found  []gopacket.LayerType
}

func newDecoder() *decoder {
	d := &decoder{found: make([]gopacket.LayerType, 0, 4)}
	d.parse4 = gopacket.NewDecodingLayerParser(layers.LayerTypeIPv4, &d.ip4, &d.udp)
	d.parse6 = gopacket.NewDecodingLayerParser(layers.LayerTypeIPv6, &d.ip6, &d.udp)
	d.parse4.IgnoreUnsupported = true // what UDP carries
	d.parse6.IgnoreUnsupported = true
	return d
}

// decode4 decodes an IPv4 packet with at most a link's padding after it. The Packet's Data points into b, and its
// Interface is not set.
func (d *decoder) decode4(b []byte) (Packet, verdict) {
	switch {
	case len(b) < ipv4Header || b[0]>>4 != 4:
		return Packet{}, malformed
	case binary.BigEndian.Uint16(b[6:8])&0x3fff != 0:
		return Packet{}, fragment
	case b[0]&0xf > ipv4Header/4:
		return Packet{}, options
	}
	// The IP header has a length of its own, and the two must agree.
	if !d.isUDP(d.parse4, b) || binary.BigEndian.Uint16(b[2:4]) != ipv4Header+d.udp.Length {
		return Packet{}, malformed
	}
	from, to := netip.AddrFrom4([4]byte(d.ip4.SrcIP)), netip.AddrFrom4([4]byte(d.ip4.DstIP))
	return d.packet(from, to), passed
}

// decode6 is decode4 for an IPv6 packet.
func (d *decoder) decode6(b []byte) (Packet, verdict) {
	switch {
	case len(b) < ipv6Header || b[0]>>4 != 6:
		return Packet{}, malformed
	case b[6] == nextFragment:
		return Packet{}, fragment
	case b[6] != protoUDP:
		return Packet{}, extension
	}
	if !d.isUDP(d.parse6, b) || binary.BigEndian.Uint16(b[4:6]) != d.udp.Length {
		return Packet{}, malformed
	}
	from, to := netip.AddrFrom16([16]byte(d.ip6.SrcIP)), netip.AddrFrom16([16]byte(d.ip6.DstIP))
	return d.packet(from, to), passed
}

// isUDP reports whether b is one IP header and one whole UDP datagram.
func (d *decoder) isUDP(parser *gopacket.DecodingLayerParser, b []byte) bool {
	err := parser.DecodeLayers(b, &d.found)
	return err == nil && !parser.Truncated && len(d.found) == 2
}

func (d *decoder) packet(from, to netip.Addr) Packet {
	return Packet{
		Data: d.udp.Payload,
		From: netip.AddrPortFrom(from, uint16(d.udp.SrcPort)),
		To:   netip.AddrPortFrom(to, uint16(d.udp.DstPort)),
	}
}

// impossible reports whether no packet from a network can have the source a. An IPv6 packet from ::ffff:192.0.2.1
// would, once unmapped, pass for that IPv4 host's, which an attacker cannot otherwise forge across a filtering
// network.
func impossible(a netip.Addr) bool {
	if a.Is4() && a.As4()[0] == 0 {
		return true // RFC 1122, 3.2.1.3: this host on this network
	}
	return a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
