package capture

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// respond opens a responder in a host that does not refuse knocks by ICMP.
func respond(t testing.TB, h *lab.Host) *Responder {
	t.Helper()
	return respondMarked(t, h, 0)
}

// A connected socket receives only packets from exactly the address that it sent to, with a correct checksum.
func TestAnswerComesFromWhereTheKnockWent(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.AddAddr("vs", "192.0.2.200/24"))
	lab.Must(t, gateway.AddAddr("vs", "2001:db8::200/64"))
	s, r := read(t, listen(t, gateway, knocks)), respond(t, gateway)
	for _, c := range []struct{ from, to netip.AddrPort }{
		{client4, gateway4},
		{client6, gateway6},
		{client4, addrPort("192.0.2.200", 443)},
		{client6, addrPort("2001:db8::200", 443)},
	} {
		for _, size := range []int{0, 1, 168, 255, 256} {
			answerFor(t, dialUDP(t, client, c.from, c.to), s, r, size)
		}
	}
}

// answerFor knocks and expects an answer of that size.
func answerFor(t *testing.T, conn *net.UDPConn, s reading, r *Responder, size int) {
	t.Helper()
	defer conn.Close()
	_, err := conn.Write(payload(200))
	lab.Must(t, err)
	lab.Must(t, r.Send(s.expect(t), payload(size), false))
	answer := make([]byte, 2000)
	n, err := conn.Read(answer)
	if err != nil || !bytes.Equal(answer[:n], payload(size)) {
		t.Errorf("%v: got %d bytes, %v; want %d", conn.RemoteAddr(), n, err, size)
	}
}

func TestAnswerToLinkLocal(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, lab.Link(client, "xc", gateway, "xs"))              // a second link, so that the interface matters
	lab.Must(t, client.Sysctl("net.ipv4.conf.all.arp_ignore", "1")) // each address answers only on its own interface
	lab.Must(t, client.AddAddr("xc", "fe80::c/64"))
	lab.Must(t, gateway.AddAddr("xs", "fe80::5/64"))
	lab.Must(t, client.AddAddr("xc", "169.254.7.2/16"))
	lab.Must(t, gateway.AddAddr("vs", "169.254.7.3/16")) // first, so that its route is preferred
	lab.Must(t, gateway.AddAddr("xs", "169.254.7.1/16"))
	s, r := read(t, listen(t, gateway, knocks)), respond(t, gateway)
	answerFor(t, dialUDP(t, client, addrPort("fe80::c%xc", 40000), addrPort("fe80::5%xc", 62201)), s, r, 200)
	answerFor(t, dialUDP(t, client, addrPort("169.254.7.2", 40000), addrPort("169.254.7.1", 62201)), s, r, 200)
}

// A host with two uplinks may have rules that route by source address.
func TestAnswerIsRoutedByItsSource(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, client.AddAddr("vc", "198.51.100.9/32"))
	lab.Must(t, client.AddAddr("vc", "2001:db8:9::9/128"))
	lab.Must(t, gateway.Do(func() error {
		if err := routeFor("192.0.2.1/32", "198.51.100.0/24", "192.0.2.2"); err != nil {
			return err
		}
		return routeFor("2001:db8::1/128", "2001:db8:9::/48", "2001:db8::2")
	}))
	s, r := read(t, listen(t, gateway, knocks)), respond(t, gateway)
	answerFor(t, dialUDP(t, client, addrPort("198.51.100.9", 40000), gateway4), s, r, 200)
	answerFor(t, dialUDP(t, client, addrPort("2001:db8:9::9", 40000), gateway6), s, r, 200)
}

// routeFor adds a route for packets from one address only.
func routeFor(from, to, via string) error {
	rule, route := netlink.NewRule(), netlink.Route{Gw: net.ParseIP(via), Table: 100}
	rule.Table, rule.Family = 100, netlink.FAMILY_V4
	if route.Gw.To4() == nil {
		rule.Family = netlink.FAMILY_V6
	}
	var err error
	if rule.Src, err = netlink.ParseIPNet(from); err != nil {
		return err
	}
	if route.Dst, err = netlink.ParseIPNet(to); err != nil {
		return err
	}
	if err := netlink.RuleAdd(rule); err != nil {
		return err
	}
	return netlink.RouteAdd(&route)
}

func TestLinkLocalSenderHasNoZone(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, client.AddAddr("vc", "fe80::c/64"))
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	from := addrPort("fe80::c", 40000)
	in.send(t, in.frame(knock(from, gateway6)))
	if p := s.expect(t); p.From != from {
		t.Errorf("got a packet from %v, want %v", p.From, from)
	}
}

func TestAnswerRefused(t *testing.T) {
	_, gateway := lab.Pair(t)
	r := respond(t, gateway)
	for name, p := range map[string]Packet{
		"nothing":             {},
		"from nowhere":        {From: client6},
		"to nowhere":          {From: netip.AddrPortFrom(netip.Addr{}, 40000), To: gateway6},
		"two families":        {From: client4, To: gateway6},
		"two families, again": {From: client6, To: gateway4},
		"no port":             {From: addrPort("192.0.2.2", 0), To: gateway4},
		"no route":            {From: addrPort("203.0.113.1", 9), To: gateway4},
	} {
		if err := r.Send(p, payload(200), false); err == nil {
			t.Errorf("%s: it was sent", name)
		}
	}
	if err := r.Send(Packet{From: client4, To: gateway4}, payload(maxPayload+1), false); err == nil {
		t.Error("too long: it was sent")
	}
	lab.Must(t, r.Close())
	for _, p := range []Packet{{From: client4, To: gateway4}, {From: client6, To: gateway6}} {
		if err := r.Send(p, payload(200), false); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: got %v, want net.ErrClosed", err)
		}
	}
}

func TestAnswerWithoutIPv6(t *testing.T) {
	client, gateway := lab.Pair(t)
	all := respond(t, gateway)
	unix.Close(all.fd6)
	all.fd6, all.no6 = -1, unix.EAFNOSUPPORT
	if err := all.Send(Packet{From: client6, To: gateway6}, payload(200), false); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("over IPv6: got %v, want EAFNOSUPPORT", err)
	}
	answerFor(t, dialUDP(t, client, client4, gateway4), read(t, listen(t, gateway, knocks)), all, 200)
}

// The kernel gives raw sockets a copy of every packet of their protocol.
func TestResponderQueuesNothing(t *testing.T) {
	client, gateway := lab.Pair(t)
	s, r := read(t, listen(t, gateway, knocks)), respond(t, gateway)
	in := inject(t, client, "vc", gateway, "vs")
	good4, good6 := knock(client4, gateway4), knock(client6, gateway6)
	for _, packet := range [][]byte{
		change(good4, func(b []byte) { b[9] = unix.IPPROTO_RAW; mend(b) }), change(good4, mend),
		change(good6, func(b []byte) { b[6] = unix.IPPROTO_RAW }), good6,
	} {
		in.send(t, in.frame(packet))
	}
	s.expect(t)
	s.expect(t)
	for _, fd := range []int{r.fd4, r.fd6} {
		if n, _, err := unix.Recvfrom(fd, make([]byte, 2000), 0); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%d bytes are queued, %v", n, err)
		}
	}
}

// mend sets an IPv4 header's checksum.
func mend(b []byte) {
	set16(10, 0)(b)
	set16(10, ^fold(sum(b[:ipv4Header])))(b)
}

func TestChecksumIsNeverZero(t *testing.T) {
	for i := range 1 << 16 {
		b := packet4(client4, gateway4, []byte{byte(i >> 8), byte(i)})
		if b[26] == 0 && b[27] == 0 {
			t.Fatalf("with the payload %04x", i)
		}
	}
}

// TestAnswerIsNeverFragmented: answers have the don't-fragment bit. A fragment has no UDP header, so the rules that
// recognise receipts would not see it.
func TestAnswerIsNeverFragmented(t *testing.T) {
	if b := packet4(client4, gateway4, payload(200)); b[6] != 0x40 || b[7] != 0 {
		t.Errorf("flags and fragment offset are %x, want \"don't fragment\" alone", b[6:8])
	}
}
