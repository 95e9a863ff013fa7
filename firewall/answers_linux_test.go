package firewall

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// To a scan, a guarded port or a knock port looks like any closed port of the host: the answers are the same, byte
// for byte, except for the number of the port. The tests compare the frames themselves.

// scan is a packet that a scanner sends.
type scan struct {
	name     string
	proto    service.Proto
	flags    byte // of TCP
	class    byte // type of service or traffic class
	label    uint32
	unsummed bool
	plain    bool   // ignore flow labels of the answer
	route    []byte // type of an IPv6 routing header, and its segments left
}

var scans = []scan{
	{name: "SYN", proto: service.TCP, flags: nftables.Syn},
	{name: "SYN with a class", proto: service.TCP, flags: nftables.Syn, class: 0xb8, label: 0x12345},
	{name: "SYN, ECN", proto: service.TCP, flags: nftables.Syn | 0xc0, class: 0x02, label: 0x54321},
	{name: "ACK", proto: service.TCP, flags: nftables.Ack, class: 0x20, label: 0x11111},
	{name: "UDP", proto: service.UDP},
	{name: "UDP with a class", proto: service.UDP, class: 0xb8, label: 0x12345},
	{name: "UDP without a checksum", proto: service.UDP, unsummed: true},
}

// routeScans have an IPv6 routing header, of types that kernels drop by default.
func routeScans() (all []scan) {
	for _, kind := range []byte{0, 3, 4} {
		for left := range byte(2) {
			for _, p := range []scan{{name: "SYN", proto: service.TCP, flags: nftables.Syn}, {name: "ACK", proto: service.TCP,
				flags: nftables.Ack}, {name: "FIN", proto: service.TCP, flags: nftables.Fin}, {name: "UDP", proto: service.UDP}} {
				p.name += fmt.Sprintf(" routed by type %d, %d left", kind, left)
				p.route, p.plain = []byte{kind, left}, true
				all = append(all, p)
			}
		}
	}
	return all
}

// flagScans are scans with each combination of TCP's flags. Most begin no flow, and nftables itself resets them:
// without a flow label, and without the scan's traffic class.
func flagScans() (all []scan) {
	for flags := range byte(64) {
		if flags&nftables.Rst != 0 && flags != nftables.Rst {
			continue // a reset gets no answer
		}
		all = append(all, scan{name: fmt.Sprintf("flags %06b", flags), proto: service.TCP, flags: flags, plain: true})
	}
	return all
}

// packet returns the scan's IP packet. All ports have the same sequence number.
func (p scan) packet(from, to netip.Addr, sport, dport uint16) []byte {
	segment := binary.BigEndian.AppendUint16(nil, sport)
	segment = binary.BigEndian.AppendUint16(segment, dport)
	if p.proto == service.TCP {
		segment = append(segment, 0, 0, 0x10, 0, 0, 0, 0, 0, 5<<4, p.flags, 0x20, 0, 0, 0, 0, 0)
	} else {
		segment = append(segment, 0, 12, 0, 0, 'h', 'e', 'y', '?')
	}
	at := map[service.Proto]int{service.TCP: 16, service.UDP: 6}[p.proto]
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, byte(p.proto), 0, byte(len(segment)))
	if !p.unsummed {
		binary.BigEndian.PutUint16(segment[at:], inetSum(append(pseudo, segment...)))
	}
	if from.Is4() {
		header := []byte{0x45, p.class, 0, byte(20 + len(segment)), 0x12, 0x34, 0x40, 0, 64, byte(p.proto), 0, 0}
		header = append(append(header, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(header[10:], inetSum(header))
		return append(header, segment...)
	}
	header, proto := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(p.class)<<20|p.label), byte(p.proto)
	if p.route != nil {
		segment = append(slices.Concat([]byte{proto, 2}, p.route, make([]byte, 4), to.AsSlice()), segment...)
		proto = unix.IPPROTO_ROUTING
	}
	header = append(header, 0, byte(len(segment)), proto, 64)
	return slices.Concat(header, from.AsSlice(), to.AsSlice(), segment)
}

// inetSum is the checksum of RFC 1071.
func inetSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// answerTo sends a scan from the client and returns the IP packet that answers it, or nil. It clears the fields that
// differ from packet to packet: the number of the scanned port wherever it appears, checksums, and the identification
// and flow label that the kernel makes up.
func (s *site) answerTo(p scan, from, to netip.Addr, sport, dport uint16) []byte {
	s.Helper()
	var fd, raw int
	s.must(s.client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ALL))); err != nil {
			return err
		}
		family := unix.AF_INET
		if to.Is6() {
			family = unix.AF_INET6
		}
		raw, err = unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
		return err
	}))
	defer unix.Close(fd)
	defer unix.Close(raw)
	packet := p.packet(from, to, sport, dport)
	if to.Is4() {
		s.must(unix.Sendto(raw, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}))
	} else {
		s.must(unix.SetsockoptInt(raw, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1))
		s.must(unix.Sendto(raw, packet, 0, &unix.SockaddrInet6{Addr: to.As16()}))
	}
	s.must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	b := make([]byte, 2048)
	for give := time.Now().Add(silence); time.Now().Before(give); {
		n, peer, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			continue
		}
		if link, ok := peer.(*unix.SockaddrLinklayer); !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if got := normalized(b[:n], from, to, sport, dport); got != nil {
			return got
		}
	}
	return nil
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

// normalized returns an answer from to without the fields that differ from packet to packet, or nil if it is not one.
func normalized(b []byte, from, to netip.Addr, sport, dport uint16) []byte {
	size := 20
	if to.Is6() {
		size = 40
	}
	if len(b) < size+8 || b[0]>>4 != map[int]byte{20: 4, 40: 6}[size] {
		return nil
	}
	b = bytes.Clone(b)
	var proto byte
	var src, dst netip.Addr
	if size == 20 {
		proto, src, dst = b[9], netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		clear(b[4:6])   // identification
		clear(b[10:12]) // checksum
	} else {
		proto, src, dst = b[6], netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if b[1]&0x0f != 0 || b[2] != 0 || b[3] != 0 {
			b[1], b[2], b[3] = b[1]&0xf0|0x0f, 0xff, 0xff // there is a label
		}
	}
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, dport), sport)
	back := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, sport), dport)
	payload := b[size:]
	switch {
	case src != to || dst != from:
		return nil
	case proto == byte(service.TCP) && bytes.Equal(payload[:4], ports):
		clear(payload[:4])
		clear(payload[16:18])
	case proto == unix.IPPROTO_ICMP && payload[0] == 3 || proto == unix.IPPROTO_ICMPV6 &&
		(payload[0] == 1 || payload[0] == 4):
		at := bytes.Index(payload[8:], back)
		if at < 0 {
			return nil
		}
		clear(payload[2:4])
		quoted := payload[8+at:]
		clear(quoted[:4])
		for _, sum := range []int{6, 16} { // of UDP, and of TCP
			if len(quoted) >= sum+2 {
				clear(quoted[sum : sum+2])
			}
		}
	default:
		return nil
	}
	return b
}

// TestRefusalsAreTheKernelsOwn: a guarded port of a host that rejects answers like its closed ports.
func TestRefusalsAreTheKernelsOwn(t *testing.T) {
	s := guarded(t, func(c *Config) {
		guarding("udp/5000")(c)
		c.Closed = Reject
	})
	s.quickRefusals()
	s.udp(s.gw, "[::]:5000")
	s.must(s.gw.AddAddr("vs", "192.0.2.77/24")) // a second address answers from itself
	for _, f := range bothFamilies {
		for _, to := range []string{f.gateway, map[string]string{"IPv4": "192.0.2.77", "IPv6": f.gateway}[f.name]} {
			for i, p := range slices.Concat(scans, flagScans(), routeScans()) {
				if p.route != nil && f.name == "IPv4" {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %s", f.name, to, p.name), func(t *testing.T) {
					s.T = t
					port := map[service.Proto]uint16{service.TCP: 22, service.UDP: 5000}[p.proto]
					s.sameAnswer(p, f.stranger, to, uint16(41000+i), port, port+1)
				})
			}
		}
	}
}

// TestKnockPortAnswersAsOthers: whether closed ports of the host answer or drop, a knock port does the same.
func TestKnockPortAnswersAsOthers(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, drops := range []bool{false, true} {
			s := k.guarded(t, nil)
			s.quickRefusals()
			if drops {
				s.another(func(c *nft.Conn) {
					// meta l4proto udp drop
					chainOf(c, nft.ChainTypeFilter, nft.ChainHookInput, 0,
						nftables.Rule(nftables.L4Proto(service.UDP), nftables.Drop()).Exprs...)
				})
			}
			for _, f := range bothFamilies {
				for i, p := range append(scans, routeScans()...) {
					if p.proto == service.UDP && (p.route == nil || f.name == "IPv6") {
						s.sameAnswer(p, f.stranger, f.gateway, uint16(41000+i), 62201, 62202)
					}
				}
			}
		}
	})
}

// quickRefusals lifts the limits on ICMP errors.
func (s *site) quickRefusals() {
	s.Helper()
	for _, name := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
		s.must(s.gw.Sysctl(name, "0"))
	}
}

func (s *site) sameAnswer(p scan, from, to string, sport, port, neighbour uint16) {
	s.Helper()
	ask := func(dport uint16) []byte {
		answer := s.answerTo(p, netip.MustParseAddr(from), netip.MustParseAddr(to), sport, dport)
		if p.plain && answer != nil && answer[0]>>4 == 6 {
			clear(answer[1:4])
		}
		return answer
	}
	var got, want []byte
	for range 3 { // the kernel's limit for all errors may have been reached
		if got, want = ask(port), ask(neighbour); bytes.Equal(got, want) {
			return
		}
	}
	s.Errorf("%s to %s port %d:\n%s\nport %d answers\n%s", p.name, to, port, hex.Dump(got), neighbour, hex.Dump(want))
}

// TestFramesToAll: a frame to all hosts on the link, sent in a client's name, gets no answer, and begins no flow that
// would block the client's own.
func TestFramesToAll(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Closed = Reject })
	index, _, err := s.client.Interface("vc")
	s.must(err)
	for _, f := range bothFamilies {
		from, to := netip.MustParseAddr(f.alice), netip.MustParseAddr(f.gateway)
		for i, p := range append(scans[:4:4], flagScans()...) {
			sport := uint16(42000 + i)
			frame := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index, Halen: 6,
				Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
			if to.Is6() {
				frame.Protocol = htons(unix.ETH_P_IPV6)
			}
			s.must(s.client.Do(func() error {
				fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, p.packet(from, to, sport, 22), 0, &frame)
			}))
		}
		s.must(s.Grant(t.Context(), []Grant{sshGrant("alice", f.alice, long)}, time.Now()))
		for i := range 4 + len(flagScans()) {
			c, err := s.attempt(netip.AddrPortFrom(from, uint16(42000+i)).String(), f.gateway, "22", lab.Patience)
			if err != nil {
				t.Errorf("%s: scan %d: %v", f.name, i, err)
				continue
			}
			c.Close()
		}
	}
}

// TestNoAnswerToMany: what is sent to a broadcast or multicast address gets no answer, also if the frame is for the
// gateway alone, from a guarded port as from others.
func TestNoAnswerToMany(t *testing.T) {
	s := guarded(t, func(c *Config) {
		guarding("udp/5000")(c)
		c.Closed = Reject
	})
	s.quickRefusals()
	for from, all := range map[string][]string{"192.0.2.3": {"192.0.2.255", "224.0.0.1"}, "2001:db8::3": {"ff02::1"}} {
		for _, to := range all {
			for i, p := range scans {
				port := map[service.Proto]uint16{service.TCP: 22, service.UDP: 5000}[p.proto]
				for _, port := range []uint16{port, port + 1} {
					answers := s.arrives(s.client, isRefusal, func() {
						s.frame(p.packet(netip.MustParseAddr(from), netip.MustParseAddr(to), uint16(41000+i), port))
					})
					if answers {
						t.Errorf("%s to %s port %d gets an answer", p.name, to, port)
					}
				}
			}
		}
	}
}

// isRefusal matches resets and ICMP errors.
func isRefusal(b []byte) bool {
	proto, payload := b[9], b[20:]
	if b[0]>>4 == 6 {
		proto, payload = b[6], b[40:]
	}
	switch {
	case proto == byte(service.TCP):
		return len(payload) > 13 && payload[13]&nftables.Rst != 0
	case proto == unix.IPPROTO_ICMP:
		return payload[0] == 3
	}
	return proto == unix.IPPROTO_ICMPV6 && len(payload) > 0 && payload[0] < 128
}

// TestSegmentRouting: a segment route through the host, where the administrator allows them, leads no stranger's
// datagram to a guarded port, however strangers are refused.
func TestSegmentRouting(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, closed := range []Closed{Drop, Reject} {
			if closed == Reject && k.programs != "" {
				continue // iptables can only drop
			}
			s := k.newSite(t, func(c *Config) {
				guarding("udp/5000")(c)
				c.Closed = closed
			})
			for _, dev := range []string{"all", "vs"} {
				s.must(s.gw.Sysctl("net.ipv6.conf."+dev+".seg6_enabled", "1"))
			}
			server, own := s.udp(s.gw, "[::]:5000"), netip.MustParseAddr("2001:db8::1")
			plain := scan{proto: service.UDP}.packet(netip.MustParseAddr("2001:db8::3"), own, 4000, 5000)
			// Two segments, of which one is left (RFC 8754, 2).
			route := slices.Concat([]byte{byte(service.UDP), 4, 4, 1, 1, 0, 0, 0}, own.AsSlice(), own.AsSlice())
			packet := slices.Concat(plain[:40], route, plain[40:])
			packet[5] += byte(len(route))
			packet[6] = unix.IPPROTO_ROUTING
			lab.Eventually(t, "the gateway's address", func() bool { s.frame(plain); return s.gets(server, silence) })
			for s.gets(server, time.Millisecond) {
			}
			s.frame(packet)
			if !s.gets(server, lab.Patience) {
				lab.KernelLacks(t, "segment routing")
			}
			s.open()
			s.load(0)
			s.frame(packet)
			if s.gets(server, silence) {
				t.Error("a stranger's datagram was delivered")
			}
		}
	})
}
