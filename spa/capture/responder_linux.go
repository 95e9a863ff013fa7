package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const hopLimit = 64 // as the kernel's own

// Responder answers packets from the address and port that they were sent to. It binds no port. Opening it needs
// CAP_NET_RAW, using it nothing. Any number of goroutines may use it.
type Responder struct {
	mu  sync.RWMutex // guards the sockets against Close
	fd4 int
	fd6 int   // -1: none
	no6 error // why not

	mark uint32
	ways *ways
}

// NewResponder opens the sockets. Their packets carry the packet mark, which tells a firewall that they are not from
// the host's own program on the same port; zero marks nothing. On a host without IPv6, Send returns an error for an
// IPv6 packet.
func NewResponder(mark uint32) (*Responder, error) {
	fd4, err := openRaw(unix.AF_INET, mark)
	if err != nil {
		return nil, fmt.Errorf("opening the IPv4 responder: %w", err)
	}
	fd6, err := openRaw(unix.AF_INET6, mark)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		unix.Close(fd4)
		return nil, fmt.Errorf("opening the IPv6 responder: %w", err)
	}
	r := &Responder{fd4: fd4, fd6: fd6, no6: err, mark: mark}
	if r.ways, err = openWays(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the responder: %w", err), r.Close())
	}
	return r, nil
}

// openRaw opens a socket that sends whole IP packets, with protocol IPPROTO_RAW, which receives nothing. A socket that
// let the kernel write the IP header would have protocol UDP, and the kernel would copy every UDP datagram of the host
// to it, if only for a filter to drop.
func openRaw(family int, mark uint32) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("setting the mark: %w", err)
	}
	if family == unix.AF_INET6 {
		// Otherwise an address that is this host's own only by a local route could not be the source.
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("allowing any source: %w", err)
		}
	}
	if err := attach(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Send sends payload from p's destination to p's source. It does not wait: if the socket buffer is full, the datagram
// is lost and Send returns an error.
//
// The answer is routed by the host. If it would leave by another interface than p came in by, and a routing rule for a
// packet mark selects that one, the answer carries the rule's mark: with two uplinks it leaves by the one that was
// knocked on. If such a mark conflicts with NewResponder's, the latter is dropped, unless keep is set.
func (r *Responder) Send(p Packet, payload []byte, keep bool) error {
	from, to := p.To, p.From
	if !from.IsValid() || !to.IsValid() || from.Addr().Is4() != to.Addr().Is4() || to.Port() == 0 {
		return fmt.Errorf("cannot send from %v to %v", from, to)
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.ways == nil {
		return fmt.Errorf("answering %v from %v: %w", to, from, net.ErrClosed)
	}
	control := markOf(r.ways.back(p, r.mark, keep))
	var err error
	if to.Addr().Is4() {
		err = r.send4(from, to, p.Interface, payload, control)
	} else {
		err = r.send6(from, to, p.Interface, payload, control)
	}
	if err != nil {
		return fmt.Errorf("answering %v from %v: %w", to, from, err)
	}
	return nil
}

func (r *Responder) send4(from, to netip.AddrPort, index int, payload, control []byte) error {
	// Passed outside the header too, so that rules that route by source address apply.
	info := unix.Inet4Pktinfo{Spec_dst: from.Addr().As4()}
	if to.Addr().IsLinkLocalUnicast() {
		info.Ifindex = int32(index)
	}
	_, err := unix.SendmsgN(r.fd4, packet4(from, to, payload), append(unix.PktInfo4(&info), control...),
		&unix.SockaddrInet4{Addr: to.Addr().As4()}, 0)
	return err
}

func (r *Responder) send6(from, to netip.AddrPort, index int, payload, control []byte) error {
	if r.fd6 < 0 {
		return r.no6
	}
	info := unix.Inet6Pktinfo{Addr: from.Addr().As16()}
	dst := unix.SockaddrInet6{Addr: to.Addr().As16()}
	if to.Addr().IsLinkLocalUnicast() {
		info.Ifindex, dst.ZoneId = uint32(index), uint32(index)
	}
	_, err := unix.SendmsgN(r.fd6, packet6(from, to, payload), append(unix.PktInfo6(&info), control...), &dst, 0)
	return err
}

// Close closes the sockets; Send returns net.ErrClosed afterwards.
func (r *Responder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	unix.Close(r.fd4)
	unix.Close(r.fd6)
	r.fd4, r.fd6, r.no6 = -1, -1, net.ErrClosed
	if r.ways != nil {
		r.ways.close()
		r.ways = nil
	}
	return nil
}

// packet4 returns an IPv4 packet without identification and header checksum, which the kernel fills in (raw(7)).
func packet4(from, to netip.AddrPort, payload []byte) []byte {
	const dontFragment = 0x4000
	b := make([]byte, ipv4Header, ipv4Header+udpHeader+len(payload))
	src, dst := from.Addr().As4(), to.Addr().As4()
	b[0] = 4<<4 | ipv4Header/4
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	binary.BigEndian.PutUint16(b[6:], dontFragment)
	b[8], b[9] = hopLimit, protoUDP
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	return appendUDP(b, b[12:], from.Port(), to.Port(), payload)
}

func packet6(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, ipv6Header, ipv6Header+udpHeader+len(payload))
	src, dst := from.Addr().As16(), to.Addr().As16()
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(udpHeader+len(payload)))
	b[6], b[7] = protoUDP, hopLimit
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return appendUDP(b, b[8:], from.Port(), to.Port(), payload)
}

// appendUDP appends a datagram whose checksum covers addresses: source and destination concatenated.
func appendUDP(b, addresses []byte, from, to uint16, payload []byte) []byte {
	header := len(b)
	size := uint16(udpHeader + len(payload))
	b = binary.BigEndian.AppendUint16(b, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, size)
	b = append(b, 0, 0)
	b = append(b, payload...)
	check := ^fold(sum(addresses) + sum(b[header:]) + protoUDP + uint32(size))
	if check == 0 {
		check = 0xffff // RFC 768: zero means no checksum
	}
	binary.BigEndian.PutUint16(b[header+6:], check)
	return b
}

// sum adds b up as 16-bit numbers, padded with a zero (RFC 1071).
func sum(b []byte) uint32 {
	var total uint32
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	return total
}

func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
