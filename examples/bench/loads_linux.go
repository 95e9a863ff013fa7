package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	mathrand "math/rand/v2"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// The kinds of noise.
const (
	random = "random bytes"
	forged = "forged tags from spoofed sources"
	copies = "copies of a knock"
	bodies = "good headers with bad bodies"
	checks = "forged tags in a browser's checks"
)

var kinds = []string{random, forged, copies, bodies, checks}

// header is how many bytes of a knock come before its body: see spa/PROTOCOL.md.
const header = 40

// noiser is a program that takes noise of some kinds.
type noiser interface {
	program
	// noise returns noise of the kind for the program's network, or nil if the kind makes no sense for this program.
	noise(kind string) (*load, error)
}

func (s *sallyport) noise(kind string) (*load, error) {
	if (kind == checks) != (s.title == browsers) && kind != random {
		return nil, nil // the cost of browsers is seen beside that of random bytes
	}
	if kind == checks {
		return s.checks()
	}
	sender, err := s.sender(0)
	if err != nil {
		return nil, err
	}
	knock, err := seal(sender)
	if err != nil {
		return nil, err
	}
	l, err := s.net.newLoad()
	if err != nil {
		return nil, err
	}
	switch kind {
	case random, forged:
		l.fresh = payloadAt
	case bodies:
		l.fresh = payloadAt + header
	case copies:
		if err := s.net.deliver(knock); err != nil {
			return nil, err
		}
	}
	for range framesEach {
		from, data := noiseAddr, randomBytes(spa.MinLen+mathrand.IntN(spa.MaxLen-spa.MinLen+1))
		switch kind {
		case forged:
			from = spoofed()
		case bodies:
			copy(data, knock[:header])
		case copies:
			from, data = clientAddr, knock
		}
		l.datagram(from, data)
	}
	return l, l.err
}

// checks returns STUN requests with packets whose tag is forged. They are whole: the server looks into each.
func (s *sallyport) checks() (*load, error) {
	l, err := s.net.newLoad()
	if err != nil {
		return nil, err
	}
	for range framesEach {
		stun := lab.STUN{Packet: randomBytes(spa.MinLen), Local: "noise", Password: "forged"}
		rand.Read(stun.Transaction[:])
		l.datagram(noiseAddr, stun.Check())
	}
	return l, l.err
}

func (f *fwknop) noise(kind string) (*load, error) {
	if kind != random {
		return nil, nil
	}
	size, err := f.packetLen()
	if err != nil {
		return nil, err
	}
	l, err := f.net.newLoad()
	if err != nil {
		return nil, err
	}
	for range framesEach {
		l.datagram(noiseAddr, []byte(base64.RawStdEncoding.EncodeToString(randomBytes(size))[:size]))
	}
	return l, l.err
}

// noise for knockd are SYNs to its first port, because it looks at nothing else.
func (k *knockd) noise(kind string) (*load, error) {
	if kind != random {
		return nil, nil
	}
	l, err := k.net.newLoad()
	if err != nil {
		return nil, err
	}
	for range framesEach {
		l.syn(spoofed())
	}
	return l, l.err
}

// spoofed returns a random address of those for benchmarks (RFC 2544).
func spoofed() netip.Addr {
	low := mathrand.Uint32N(1 << 17)
	return netip.AddrFrom4([4]byte{198, 18 + byte(low>>16), byte(low >> 8), byte(low)})
}

func randomBytes(n int) []byte {
	data := make([]byte, n)
	rand.Read(data)
	return data
}

// load is noise as frames of Ethernet, sent again and again.
type load struct {
	frames [][]byte
	fresh  int // where the eight bytes are that differ each time that a frame is sent; 0: nowhere
	link   layers.Ethernet
	err    error // the first one
}

// framesEach is how many different frames a load has.
const framesEach = 1024

// knockPort is the port of Sallyport and of fwknop, firstKnockdPort that of knockd.
const (
	knockPort       = 62201
	firstKnockdPort = 7000
)

// Offsets in a frame of UDP.
const (
	checksumAt = 14 + 20 + 6
	payloadAt  = 14 + 20 + 8
)

// newLoad returns a load without frames, for the cable from the client to the gateway.
func (n *network) newLoad() (*load, error) {
	_, from, err := n.client.Interface(clientDev)
	if err != nil {
		return nil, err
	}
	_, to, err := n.gateway.Interface(gatewayDev)
	if err != nil {
		return nil, err
	}
	return &load{link: layers.Ethernet{SrcMAC: from, DstMAC: to, EthernetType: layers.EthernetTypeIPv4}}, nil
}

// datagram adds a frame to the knock port. It has no UDP checksum, because its data may change.
func (l *load) datagram(from netip.Addr, data []byte) {
	udp := &layers.UDP{SrcPort: layers.UDPPort(sourcePort()), DstPort: knockPort}
	frame := l.frame(from, layers.IPProtocolUDP, udp, gopacket.Payload(data))
	if l.err == nil {
		binary.BigEndian.PutUint16(frame[checksumAt:], 0)
		l.frames = append(l.frames, frame)
	}
}

// syn adds a frame that begins a connection to the first of knockd's ports.
func (l *load) syn(from netip.Addr) {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(sourcePort()), DstPort: firstKnockdPort, Seq: mathrand.Uint32(),
		SYN: true, Window: 64240}
	l.frames = append(l.frames, l.frame(from, layers.IPProtocolTCP, tcp))
}

func sourcePort() int { return 1024 + mathrand.IntN(60_000) }

func (l *load) frame(from netip.Addr, proto layers.IPProtocol, inside ...gopacket.SerializableLayer) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: from.AsSlice(), DstIP: gatewayAddr.AsSlice()}
	if transport, ok := inside[0].(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		l.err = errors.Join(l.err, transport.SetNetworkLayerForChecksum(ip))
	}
	buf := gopacket.NewSerializeBuffer()
	all := append([]gopacket.SerializableLayer{&l.link, ip}, inside...)
	l.err = errors.Join(l.err, gopacket.SerializeLayers(buf,
		gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...))
	return buf.Bytes()
}

// deliver sends a datagram to the knock port, as a client does.
func (n *network) deliver(data []byte) error {
	return n.client.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, data, 0, &unix.SockaddrInet4{Addr: gatewayAddr.As4(), Port: knockPort})
	})
}
