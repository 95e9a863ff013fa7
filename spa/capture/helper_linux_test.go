package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

var knocks = Config{Ports: []uint16{62201, 443}, MinLen: 168, MaxLen: 256}

var (
	client4  = netip.MustParseAddrPort("192.0.2.2:40000")
	client6  = netip.MustParseAddrPort("[2001:db8::2]:40000")
	gateway4 = netip.MustParseAddrPort("192.0.2.1:62201")
	gateway6 = netip.MustParseAddrPort("[2001:db8::1]:62201")
)

func addrPort(a string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(a), port)
}

// listen opens a sniffer in a host.
func listen(t testing.TB, h *lab.Host, c Config) *Sniffer {
	t.Helper()
	var s *Sniffer
	lab.Must(t, h.Do(func() (err error) {
		s, err = Listen(c)
		return err
	}))
	t.Cleanup(func() { lab.Must(t, s.Close()) })
	return s
}

// A reading is a sniffer that is read continuously.
type reading struct {
	*Sniffer
	packets chan Packet
}

// read collects the packets that a sniffer passes until the test ends.
func read(t testing.TB, s *Sniffer) reading {
	r := reading{s, make(chan Packet, 64)}
	ended := make(chan error, 1)
	go func() {
		for {
			p, err := s.Read()
			if err != nil {
				ended <- err
				return
			}
			p.Data, p.Frame = bytes.Clone(p.Data), bytes.Clone(p.Frame)
			r.packets <- p
		}
	}()
	t.Cleanup(func() {
		lab.Must(t, s.Close())
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read ended with %v, want net.ErrClosed", err)
		}
	})
	return r
}

// expect waits for the next packet.
func (r reading) expect(t testing.TB) Packet {
	t.Helper()
	select {
	case p := <-r.packets:
		return p
	case <-time.After(lab.Patience):
		t.Fatalf("no packet came; %+v", r.Stats())
		return Packet{}
	}
}

// An injector sends raw frames out of an interface.
type injector struct {
	fd, index int
	src, dst  net.HardwareAddr
}

// inject makes an injector from one host's interface to another's.
func inject(t testing.TB, a *lab.Host, devA string, b *lab.Host, devB string) injector {
	t.Helper()
	index, src, err := a.Interface(devA)
	lab.Must(t, err)
	_, dst, err := b.Interface(devB)
	lab.Must(t, err)
	i := injector{index: index, src: src, dst: dst}
	lab.Must(t, a.Do(func() (err error) {
		i.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { unix.Close(i.fd) })
	return i
}

// frame puts an Ethernet header in front of a packet.
func (i injector) frame(packet []byte) []byte {
	kind := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	return i.ethernet(kind, packet)
}

func (i injector) ethernet(kind uint16, packet []byte) []byte {
	f := append(bytes.Clone(i.dst), i.src...)
	return append(binary.BigEndian.AppendUint16(f, kind), packet...)
}

func (i injector) send(t testing.TB, frame []byte) {
	t.Helper()
	lab.Must(t, unix.Sendto(i.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.index}))
}

// payload returns n bytes that are not all the same.
func payload(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// knock returns a packet of a plausible length.
func knock(from, to netip.AddrPort) []byte {
	if to.Addr().Is4() {
		return packet4(from, to, payload(200))
	}
	return packet6(from, to, payload(200))
}

// gain returns what was counted between two Stats.
func gain(before, after Stats) Stats {
	return Stats{
		Received:       after.Received - before.Received,
		Passed:         after.Passed - before.Passed,
		WrongInterface: after.WrongInterface - before.WrongInterface,
		NotForUs:       after.NotForUs - before.NotForUs,
		OwnSource:      after.OwnSource - before.OwnSource,
		BadSource:      after.BadSource - before.BadSource,
		Fragment:       after.Fragment - before.Fragment,
		Options:        after.Options - before.Options,
		Extension:      after.Extension - before.Extension,
		Malformed:      after.Malformed - before.Malformed,
		Framed:         after.Framed - before.Framed,
		Unframed:       after.Unframed - before.Unframed,
		KernelDrops:    after.KernelDrops - before.KernelDrops,
	}
}

// waitFor waits until the sniffer has counted want since before.
func (r reading) waitFor(t testing.TB, before, want Stats) {
	t.Helper()
	var got Stats
	deadline := time.After(lab.Patience)
	for got = gain(before, r.Stats()); got.Received < want.Received; got = gain(before, r.Stats()) {
		select {
		case <-deadline:
			t.Fatalf("counted %+v, want %+v", got, want)
		case <-time.After(time.Millisecond):
		}
	}
	if got != want {
		t.Fatalf("counted %+v, want %+v", got, want)
	}
}

// dialUDP opens a UDP socket in a host.
func dialUDP(t testing.TB, h *lab.Host, from, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	lab.Must(t, h.Do(func() (err error) {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	lab.Must(t, c.SetDeadline(time.Now().Add(lab.Patience)))
	return c
}
