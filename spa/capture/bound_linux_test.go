package capture

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// bound binds the knock ports in a host.
func bound(t testing.TB, h *lab.Host, c Config) *Bound {
	t.Helper()
	var b *Bound
	lab.Must(t, h.Do(func() (err error) {
		b, err = Bind(c, 0x40)
		return err
	}))
	t.Cleanup(func() { lab.Must(t, b.Close()) })
	return b
}

// readBound collects the packets that are passed until the test ends.
func readBound(t testing.TB, b *Bound) chan Packet {
	packets, ended := make(chan Packet, 64), make(chan error, 1)
	go func() {
		for {
			p, err := b.Read()
			if err != nil {
				ended <- err
				return
			}
			p.Data, p.Frame = bytes.Clone(p.Data), bytes.Clone(p.Frame)
			packets <- p
		}
	}()
	t.Cleanup(func() {
		lab.Must(t, b.Close())
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read ended with %v, want net.ErrClosed", err)
		}
	})
	return packets
}

// TestBoundAnswersFromWhereTheKnockWent: each address and port of the host gets its packets, and answers them. A
// connected socket receives only packets from exactly the address that it sent to.
func TestBoundAnswersFromWhereTheKnockWent(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.AddAddr("vs", "192.0.2.200/24"))
	lab.Must(t, gateway.AddAddr("vs", "2001:db8::200/64"))
	lab.Must(t, client.AddAddr("vc", "fe80::c/64"))
	lab.Must(t, gateway.AddAddr("vs", "fe80::5/64"))
	index, _, err := client.Interface("vc")
	lab.Must(t, err)
	at, _, err := gateway.Interface("vs")
	lab.Must(t, err)
	b := bound(t, gateway, knocks)
	packets := readBound(t, b)
	zone := func(a string) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(a).WithZone(strconv.Itoa(index)), 62201)
	}
	for _, c := range []struct{ from, to netip.AddrPort }{
		{client4, gateway4}, {client6, gateway6}, {client4, addrPort("192.0.2.200", 443)},
		{client6, addrPort("2001:db8::200", 443)}, {zone("fe80::c"), zone("fe80::5")},
	} {
		conn := dialUDP(t, client, c.from, c.to)
		_, err := conn.Write(payload(200))
		lab.Must(t, err)
		p := awaitPacket(t, b, packets)
		want := Packet{From: netip.AddrPortFrom(c.from.Addr().WithZone(""), c.from.Port()),
			To: netip.AddrPortFrom(c.to.Addr().WithZone(""), c.to.Port()), Interface: at}
		if p.From != want.From || p.To != want.To || p.Interface != want.Interface || !bytes.Equal(p.Data, payload(200)) {
			t.Errorf("got %v to %v by %d with %d bytes, want %+v", p.From, p.To, p.Interface, len(p.Data), want)
		}
		lab.Must(t, b.Send(p, payload(200), false))
		answer := make([]byte, 2000)
		n, err := conn.Read(answer)
		if err != nil || !bytes.Equal(answer[:n], payload(200)) {
			t.Errorf("%v: got %d bytes, %v", c.to, n, err)
		}
		conn.Close()
	}
	lab.Must(t, b.Close())
	if err := b.Send(Packet{From: client4, To: gateway4}, payload(200), false); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func awaitPacket(t testing.TB, b *Bound, packets chan Packet) Packet {
	t.Helper()
	select {
	case p := <-packets:
		return p
	case <-time.After(lab.Patience):
		t.Fatalf("no packet came; %+v", b.Stats())
		return Packet{}
	}
}

// rawSocket opens a socket on the host that sends whole IP packets, from any address.
func rawSocket(t *testing.T, h *lab.Host, family int) int {
	t.Helper()
	var fd int
	lab.Must(t, h.Do(func() (err error) {
		fd, err = openRaw(family, 0)
		return err
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestBoundTakesOnlyCandidates: what passes has a possible length and came from another machine, by a wanted interface.
// The last packet of each kind passes, so the others have been judged when it arrives.
func TestBoundTakesOnlyCandidates(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, lab.Link(client, "xc", gateway, "xs"))
	lab.Must(t, client.AddAddr("xc", "198.51.100.2/24"))
	lab.Must(t, gateway.AddAddr("xs", "198.51.100.1/24"))
	c := knocks
	c.Interfaces = []string{"vs"}
	b := bound(t, gateway, c)
	packets := readBound(t, b)
	send := func(h *lab.Host, from, to netip.AddrPort, sizes ...int) {
		conn := dialUDP(t, h, from, to)
		defer conn.Close()
		for _, size := range sizes {
			_, err := conn.Write(payload(size))
			lab.Must(t, err)
		}
	}
	send(client, addrPort("198.51.100.2", 40000), addrPort("198.51.100.1", 62201), 200)
	lab.Eventually(t, "the packet to be judged", func() bool { return b.Stats().WrongInterface == 1 })
	send(gateway, addrPort("192.0.2.1", 40000), addrPort("192.0.2.1", 62201), 200)
	lab.Eventually(t, "the packet to be judged", func() bool { return b.Stats().OwnSource == 1 })
	send(client, client4, gateway4, 0, 1, 167, 257, 1472, 168, 256)
	for _, want := range []int{168, 256} {
		if p := awaitPacket(t, b, packets); len(p.Data) != want {
			t.Errorf("got %d bytes, want %d", len(p.Data), want)
		}
	}
	send(client, client4, addrPort("192.0.2.255", 62201), 200)
	lab.Eventually(t, "the packet to be judged", func() bool { return b.Stats().NotForUs == 1 })
	// The kernel delivers spoofed packets only with these settings.
	lab.Must(t, gateway.Sysctl("net.ipv4.conf.all.accept_local", "1"))
	lab.Must(t, gateway.Sysctl("net.ipv4.conf.vs.accept_local", "1"))
	lab.Must(t, gateway.Sysctl("net.ipv4.conf.all.rp_filter", "0"))
	lab.Must(t, gateway.Sysctl("net.ipv4.conf.vs.rp_filter", "0"))
	raw := rawSocket(t, client, unix.AF_INET)
	spoof := func(from string) {
		lab.Must(t, unix.Sendto(raw, knock(addrPort(from, 4000), gateway4), 0,
			&unix.SockaddrInet4{Addr: gateway4.Addr().As4()}))
	}
	spoof("198.51.100.1")
	lab.Eventually(t, "the packet to be judged", func() bool { return b.Stats().OwnSource == 2 })
	spoof("192.0.2.255")
	raw6 := rawSocket(t, client, unix.AF_INET6)
	mapped := packet6(netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.9"), 4000), gateway6, payload(200))
	lab.Must(t, unix.Sendto(raw6, mapped, 0, &unix.SockaddrInet6{Addr: gateway6.Addr().As16()}))
	lab.Eventually(t, "the packet to be judged", func() bool { return b.Stats().BadSource == 2 })
	spoof("192.0.2.2")
	awaitPacket(t, b, packets)
	if s := b.Stats(); s.Passed != 3 || s.Received != s.Passed+s.WrongInterface+s.NotForUs+s.OwnSource+s.BadSource {
		t.Errorf("counted %+v", s)
	}
}

// TestBoundCountsDrops: packets that the kernel drops while the queue is full are counted once there is a next packet.
func TestBoundCountsDrops(t *testing.T) {
	client, gateway := lab.Pair(t)
	b := bound(t, gateway, knocks)
	conn := dialUDP(t, client, client4, gateway4)
	const sent = 30_000
	for range sent {
		_, err := conn.Write(payload(200))
		lab.Must(t, err)
	}
	go func() {
		for {
			if _, err := b.Read(); err != nil {
				return
			}
		}
	}()
	lab.Eventually(t, "the queue to be read", func() bool {
		_, err := conn.Write(payload(200))
		lab.Must(t, err)
		return b.Stats().KernelDrops > 0
	})
	lab.Must(t, b.Close())
	if s := b.Stats(); s.KernelDrops == 0 || s.Passed == 0 {
		t.Errorf("counted %+v", s)
	}
}

// TestBoundPortIsTaken: a port that another program has is an error, and nothing stays open.
func TestBoundPortIsTaken(t *testing.T) {
	_, gateway := lab.Pair(t)
	var other *net.UDPConn
	lab.Must(t, gateway.Do(func() (err error) {
		other, err = net.ListenUDP("udp6", &net.UDPAddr{Port: 443})
		return err
	}))
	defer other.Close()
	for range 2 { // the other port is free the second time too
		err := gateway.Do(func() error {
			b, err := Bind(knocks, 0)
			if err == nil {
				b.Close()
			}
			return err
		})
		if !errors.Is(err, unix.EADDRINUSE) || !bytes.Contains([]byte(err.Error()), []byte("udp/443")) {
			t.Errorf("got %v", err)
		}
	}
}
