package capture

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// change copies a packet and changes the copy.
func change(packet []byte, do func(b []byte)) []byte {
	b := bytes.Clone(packet)
	do(b)
	return b
}

func set16(at int, v uint16) func([]byte) {
	return func(b []byte) { binary.BigEndian.PutUint16(b[at:], v) }
}

// insert inserts bytes into a packet and corrects its IP length.
func insert(packet []byte, at int, more ...byte) []byte {
	b := bytes.Join([][]byte{packet[:at], more, packet[at:]}, nil)
	if b[0]>>4 == 4 {
		set16(2, uint16(len(b)))(b)
	} else {
		set16(4, uint16(len(b)-ipv6Header))(b)
	}
	return b
}

// withOptions returns the packet with IPv4 options, whose length is a multiple of four.
func withOptions(packet []byte, options ...byte) []byte {
	return change(insert(packet, ipv4Header, options...), func(b []byte) { b[0] += byte(len(options) / 4) })
}

// withHeader returns the packet with an IPv6 extension header of 8 bytes.
func withHeader(packet []byte, number byte, rest ...byte) []byte {
	header := append([]byte{packet[6]}, rest...)
	return change(insert(packet, ipv6Header, header...), func(b []byte) { b[6] = number })
}

// padded is the content of an 8-byte extension header after its first byte.
var padded = []byte{0, 1, 4, 0, 0, 0, 0}

func tagged(i injector, id uint16, packet []byte) []byte {
	f := i.frame(packet)
	tag := binary.BigEndian.AppendUint16([]byte{0x81, 0x00}, id)
	return bytes.Join([][]byte{f[:12], tag, f[12:]}, nil)
}

func TestPassed(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.AddAddr("vs", "198.51.100.1/24"))
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	index, _, err := gateway.Interface("vs")
	lab.Must(t, err)
	good4, good6 := knock(client4, gateway4), knock(client6, gateway6)
	other := addrPort("198.51.100.1", 443)
	for name, c := range map[string]struct {
		frame []byte
		to    netip.AddrPort
		size  int
	}{
		"IPv4":                 {in.frame(good4), gateway4, 200},
		"IPv6":                 {in.frame(good6), gateway6, 200},
		"other port, address":  {in.frame(knock(client4, other)), other, 200},
		"shortest":             {in.frame(packet4(client4, gateway4, payload(168))), gateway4, 168},
		"longest":              {in.frame(packet4(client4, gateway4, payload(256))), gateway4, 256},
		"longest, IPv6":        {in.frame(packet6(client6, gateway6, payload(256))), gateway6, 256},
		"shortest, IPv6":       {in.frame(packet6(client6, gateway6, payload(168))), gateway6, 168},
		"trailing padding":     {in.frame(append(bytes.Clone(good4), 1, 2, 3)), gateway4, 200},
		"padding, IPv6":        {in.frame(append(bytes.Clone(good6), 1, 2, 3)), gateway6, 200},
		"bad checksum":         {in.frame(change(good4, set16(26, 1))), gateway4, 200},
		"VLAN priority":        {tagged(in, 0xe000, good4), gateway4, 200},
		"VLAN tag, IPv4":       {tagged(in, 10, good4), gateway4, 200},
		"VLAN tag, IPv6":       {tagged(in, 10, good6), gateway6, 200},
		"private, on a subnet": {in.frame(knock(addrPort("10.1.2.3", 5), gateway4)), gateway4, 200},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.Stats()
			in.send(t, c.frame)
			p := s.expect(t)
			if p.To != c.to || p.Interface != index || !bytes.Equal(p.Data, payload(c.size)) {
				t.Errorf("got %d bytes to %v by %d, want %d to %v by %d", len(p.Data), p.To, p.Interface, c.size, c.to, index)
			}
			s.waitFor(t, before, Stats{Received: 1, Passed: 1})
		})
	}
}

func TestAddresses(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := read(t, listen(t, gateway, knocks))
	for _, c := range []struct{ from, to netip.AddrPort }{{client4, gateway4}, {client6, gateway6}} {
		conn := dialUDP(t, client, c.from, c.to)
		_, err := conn.Write(payload(200))
		lab.Must(t, err)
		if p := s.expect(t); p.From != c.from || p.To != c.to {
			t.Errorf("got a packet from %v to %v, want from %v to %v", p.From, p.To, c.from, c.to)
		}
	}
}

// A noise is a frame that must not pass, and how it is counted.
type noise struct {
	name  string
	frame []byte
	count Stats
}

func TestNoise(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	all := append(noLayout(in), append(noPlace(in), noSource(in)...)...)
	for _, n := range append(all, never(in)...) {
		t.Run(n.name, func(t *testing.T) {
			before := s.Stats()
			in.send(t, n.frame)
			in.send(t, in.frame(knock(client4, gateway4))) // once this arrives, the frame before it was handled
			s.expect(t)
			want := n.count
			want.Received, want.Passed = want.Received+1, 1
			s.waitFor(t, before, want)
		})
	}
}

// never lists frames that the kernel filter drops.
func never(in injector) []noise {
	good4, good6 := knock(client4, gateway4), knock(client6, gateway6)
	wrong4, wrong6 := addrPort("192.0.2.1", 62202), addrPort("2001:db8::1", 62202)
	list := map[string][]byte{
		"wrong port":                  knock(client4, wrong4),
		"wrong port, IPv6":            knock(client6, wrong6),
		"knock port as source":        knock(addrPort("192.0.2.2", 62201), addrPort("192.0.2.1", 40000)),
		"too short":                   packet4(client4, gateway4, payload(167)),
		"too short, IPv6":             packet6(client6, gateway6, payload(167)),
		"too long":                    packet4(client4, gateway4, payload(257)),
		"too long, IPv6":              packet6(client6, gateway6, payload(257)),
		"TCP":                         change(good4, func(b []byte) { b[9] = 6 }),
		"TCP, IPv6":                   change(good6, func(b []byte) { b[6] = 6 }),
		"later fragment":              change(good4, set16(6, 0x2001)),
		"last fragment":               change(good4, set16(6, 0x0001)),
		"later fragment, IPv6":        withHeader(good6, 44, 0, 0, 8, 0, 0, 0, 1),
		"options, wrong port":         withOptions(knock(client4, wrong4), 1, 1, 1, 1),
		"options, too short":          withOptions(packet4(client4, gateway4, payload(167)), 1, 1, 1, 1),
		"first fragment, wrong port":  change(knock(client4, wrong4), set16(6, 0x2000)),
		"extension, wrong port":       withHeader(knock(client6, wrong6), 60, padded...),
		"extension, not UDP":          withHeader(change(good6, func(b []byte) { b[6] = 58 }), 0, padded...),
		"next header of no extension": withHeader(good6, 50, padded...),
		"two extensions":              withHeader(withHeader(good6, 60, padded...), 0, padded...),
		"cut in the UDP header":       good4[:22],
		"cut in the UDP header, IPv6": good6[:42],
		"cut in the extension header": withHeader(good6, 60, padded...)[:41],
	}
	var all []noise
	for name, packet := range list {
		all = append(all, noise{name, in.frame(packet), Stats{}})
	}
	return all
}

// noLayout lists frames that are counted as malformed.
func noLayout(in injector) []noise {
	good4, good6 := knock(client4, gateway4), knock(client6, gateway6)
	some := func(n Stats) Stats { n.Received = 1; return n }
	bad := some(Stats{Malformed: 1})
	ext := some(Stats{Extension: 1})
	return []noise{
		{"first fragment", in.frame(change(good4, set16(6, 0x2000))), some(Stats{Fragment: 1})},
		{"first fragment of much", in.frame(change(packet4(client4, gateway4, payload(1400)), set16(6, 0x2000))),
			some(Stats{Fragment: 1})},
		{"first fragment, IPv6", in.frame(withHeader(good6, 44, 0, 0, 1, 0, 0, 0, 1)), some(Stats{Fragment: 1})},
		{"atomic fragment, IPv6", in.frame(withHeader(good6, 44, 0, 0, 0, 0, 0, 0, 1)), some(Stats{Fragment: 1})},
		{"options", in.frame(withOptions(good4, 1, 1, 1, 1)), some(Stats{Options: 1})},
		{"source route", in.frame(withOptions(good4, 131, 7, 4, 192, 0, 2, 9, 0)), some(Stats{Options: 1})},
		{"most options", in.frame(withOptions(good4, make([]byte, 40)...)), some(Stats{Options: 1})},
		{"hop by hop", in.frame(withHeader(good6, 0, padded...)), ext},
		{"routing", in.frame(withHeader(good6, 43, padded...)), ext},
		{"destination options", in.frame(withHeader(good6, 60, padded...)), ext},
		{"IP longer than UDP", in.frame(insert(good4, len(good4), 1, 2)), bad},
		{"IP longer than UDP, IPv6", in.frame(insert(good6, len(good6), 1, 2)), bad},
		{"UDP longer than IP", in.frame(change(good4, set16(24, 210))), bad},
		{"UDP longer than IP, IPv6", in.frame(change(good6, set16(44, 210))), bad},
		{"IP longer than the frame", in.frame(good4[:len(good4)-1]), bad},
		{"IP longer than the frame, IPv6", in.frame(good6[:len(good6)-1]), bad},
		{"IP length zero", in.frame(change(good4, set16(2, 0))), bad},
		{"IP length zero, IPv6", in.frame(change(good6, set16(4, 0))), bad},
		{"version 5", in.ethernet(unix.ETH_P_IP, change(good4, func(b []byte) { b[0] = 0x55 })), bad},
		{"version 5, IPv6", in.ethernet(unix.ETH_P_IPV6, change(good6, func(b []byte) { b[0] = 0x50 })), bad},
		{"header of 16 bytes", in.frame(headerOf16(good4)), bad},
	}
}

// headerOf16 claims an IPv4 header of 16 bytes, and has ports and lengths that agree where UDP would then begin.
func headerOf16(packet []byte) []byte {
	return change(packet, func(b []byte) {
		b[0] = 0x44
		set16(18, 62201)(b)
		set16(20, 208)(b)
		set16(2, 224)(b)
	})
}

// noPlace lists frames that are not for the gateway.
func noPlace(in injector) []noise {
	count := Stats{Received: 1, NotForUs: 1}
	good := in.frame(knock(client4, gateway4))
	to := func(a string) []byte {
		if dst := addrPort(a, 62201); dst.Addr().Is4() {
			return in.frame(knock(client4, dst))
		}
		return in.frame(knock(client6, addrPort(a, 62201)))
	}
	mac := func(a net.HardwareAddr) []byte { return change(good, func(b []byte) { copy(b, a) }) }
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	strange := in
	strange.dst = stranger
	return []noise{
		{"to another host", to("192.0.2.77"), count},
		{"to another host, IPv6", to("2001:db8::77"), count},
		{"to loopback", to("127.0.0.1"), count},
		{"to loopback, IPv6", to("::1"), count},
		{"to broadcast", to("192.0.2.255"), count},
		{"to multicast", to("224.0.0.1"), count},
		{"to multicast, IPv6", to("ff02::1"), count},
		{"to a mapped address", to("::ffff:192.0.2.1"), count},
		{"overheard", mac(stranger), count},
		{"overheard with a VLAN tag", tagged(strange, 10, knock(client4, gateway4)), count},
		{"link broadcast", mac(net.HardwareAddr{255, 255, 255, 255, 255, 255}), count},
		{"link multicast", mac(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}), count},
	}
}

// noSource lists frames with impossible sources.
func noSource(in injector) []noise {
	from := func(a string) []byte {
		if src := addrPort(a, 40000); src.Addr().Is4() {
			return in.frame(knock(src, gateway4))
		}
		return in.frame(knock(addrPort(a, 40000), gateway6))
	}
	var all []noise
	for _, a := range []string{
		"127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "255.255.255.255", "192.0.2.255",
		"::", "::1", "ff02::1", "::ffff:192.0.2.2",
	} {
		all = append(all, noise{"from " + a, from(a), Stats{Received: 1, BadSource: 1}})
	}
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		all = append(all, noise{"from " + a, from(a), Stats{Received: 1, OwnSource: 1}})
	}
	return all
}
