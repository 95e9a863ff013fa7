package stage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// KnockPort is spa-server's default knock port.
const KnockPort = 62201

// A Sniffer copies what a host sends, as anyone on the path could.
type Sniffer struct{ fd int }

// Sniff starts to copy all packets from and to the host.
func Sniff(h *Host) (*Sniffer, error) {
	s := new(Sniffer)
	err := h.Do(func() (err error) {
		kind := unix.SOCK_DGRAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC // without the Ethernet header
		s.fd, err = unix.Socket(unix.AF_PACKET, kind, int(bigEndian(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", os.NewSyscallError("socket", err))
	}
	return s, nil
}

// Knocks returns the knocks among the packets so far: UDP payloads sent to the knock port.
func (s *Sniffer) Knocks() ([][]byte, error) {
	var found [][]byte
	packet := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(s.fd, packet, 0)
		if errors.Is(err, unix.EAGAIN) {
			return found, nil
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING {
			continue
		}
		if payload := udp4(packet[:n], KnockPort); payload != nil {
			found = append(found, append([]byte(nil), payload...))
		}
	}
}

// Close ends it.
func (s *Sniffer) Close() { _ = unix.Close(s.fd) }

// udp4 returns the payload of an IPv4 packet that is UDP to the port, else nil.
func udp4(packet []byte, port uint16) []byte {
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != unix.IPPROTO_UDP {
		return nil
	}
	header := int(packet[0]&15) * 4
	if len(packet) < header+8 {
		return nil
	}
	datagram := packet[header:]
	length := int(binary.BigEndian.Uint16(datagram[4:]))
	if binary.BigEndian.Uint16(datagram[2:]) != port || length < 8 || length > len(datagram) {
		return nil
	}
	return datagram[8:length]
}

// Resend sends copied knocks to an address, from a host's own.
func Resend(from *Host, address string, knocks [][]byte) error {
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		// Not connected: a connected socket would return the gateway's ICMP error for one packet instead of sending the
		// next.
		conn, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), KnockPort))
	for _, payload := range knocks {
		if _, err := conn.WriteTo(payload, to); err != nil {
			return err
		}
	}
	return nil
}

func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}
