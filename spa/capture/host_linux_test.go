package capture

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// TestOwnAddresses: in whatever order addresses come and go, an address is the host's own while some interface has it,
// and a broadcast address while some network has it. Routes show that too, except in a VRF, which has its own table.
func TestOwnAddresses(t *testing.T) {
	var addrs []netip.Addr
	for _, text := range []string{"192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1"} {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	r := rand.New(rand.NewPCG(1, 2))
	h := &host{places: map[place]netip.Addr{}, own: map[netip.Addr]int{}, broadcasts: map[netip.Addr]int{}}
	at := map[place]netip.Addr{} // and its broadcast address
	for range 5000 {
		p := place{int32(r.IntN(3)), addrs[r.IntN(len(addrs))]}
		broadcast := broadcastOf(p.addr, 24+r.IntN(9))
		if r.IntN(2) == 0 {
			h.apply(update{kind: unix.RTM_NEWADDR, index: p.index, addr: p.addr, broadcast: broadcast})
			at[p] = broadcast
		} else {
			h.apply(update{kind: unix.RTM_DELADDR, index: p.index, addr: p.addr})
			delete(at, p)
		}
		own, broadcasts := map[netip.Addr]bool{}, map[netip.Addr]bool{}
		for p, b := range at {
			own[p.addr], broadcasts[b] = true, b.IsValid()
		}
		for _, a := range addrs {
			if h.isOwn(a) != own[a] {
				t.Fatalf("after %v: %v is own: %v, want %v", at, a, h.isOwn(a), own[a])
			}
			for bits := 24; bits <= 32; bits++ {
				if b := broadcastOf(a, bits); b.IsValid() && h.isBroadcast(b) != broadcasts[b] {
					t.Fatalf("after %v: %v is a broadcast address: %v, want %v", at, b, h.isBroadcast(b), broadcasts[b])
				}
			}
		}
	}
	for p := range at {
		h.apply(update{kind: unix.RTM_DELADDR, index: p.index, addr: p.addr})
	}
	if len(h.places)+len(h.own)+len(h.broadcasts) != 0 {
		t.Errorf("when all are gone %v, %v and %v are remembered", h.places, h.own, h.broadcasts)
	}
}

// TestBroadcastOf: IPv6 has no broadcast address, whatever the prefix length.
func TestBroadcastOf(t *testing.T) {
	for prefix, want := range map[string]string{
		"192.0.2.1/24": "192.0.2.255", "192.0.2.1/30": "192.0.2.3", "192.0.2.1/31": "", "192.0.2.1/32": "",
		"2001:db8::1/16": "", "2001:db8::1/64": "",
	} {
		p := netip.MustParsePrefix(prefix)
		got := ""
		if b := broadcastOf(p.Addr(), p.Bits()); b.IsValid() {
			got = b.String()
		}
		if got != want {
			t.Errorf("%v: got %q, want %q", prefix, got, want)
		}
	}
}

// TestCloseLeavesNothing: Close frees all descriptors and mappings.
func TestCloseLeavesNothing(t *testing.T) {
	_, gateway := lab.Pair(t)
	use := func() {
		lab.Must(t, gateway.Do(func() error {
			s, err := Listen(knocks)
			if err != nil {
				return err
			}
			return s.Close()
		}))
		lab.Must(t, gateway.Do(func() error {
			r, err := NewResponder(0)
			if err != nil {
				return err
			}
			return r.Close()
		}))
	}
	use() // what the runtime opens once
	files, maps := openFiles(t), mapped(t)
	for range 3 {
		use()
	}
	if got := openFiles(t); got != files {
		t.Errorf("%d files are open, want %d", got, files)
	}
	if got := mapped(t); got != maps {
		t.Errorf("%d rings are mapped, want %d", got, maps)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries := lab.Value(os.ReadDir("/proc/self/fd"))(t)
	return len(entries)
}

// mapped returns the number of mapped packet socket rings.
func mapped(t *testing.T) int {
	t.Helper()
	text := lab.Value(os.ReadFile("/proc/self/maps"))(t)
	return strings.Count(string(text), "socket:[")
}

// TestParsed: netlink messages may omit fields: a default route has no destination, and an address without a far end
// has no local address (rtnetlink(7)).
func TestParsed(t *testing.T) {
	message := func(kind uint16, head []byte, attrs ...[]byte) syscall.NetlinkMessage {
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: append(head, slices.Concat(attrs...)...)}
	}
	for family, want := range map[byte]string{unix.AF_INET: "0.0.0.0/0", unix.AF_INET6: "::/0"} {
		head := make([]byte, unix.SizeofRtMsg)
		head[0], head[4], head[7] = family, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
		if u, ok := parseUpdate(message(unix.RTM_NEWROUTE, head)); !ok || u.route.String() != want {
			t.Errorf("a route: got %v, %v, want %s", u.route, ok, want)
		}
	}
	for i, other := range map[int]byte{4: unix.RT_TABLE_MAIN, 7: unix.RTN_UNICAST, 9: unix.RTM_F_CLONED >> 8} {
		head := make([]byte, unix.SizeofRtMsg)
		head[0], head[4], head[7] = unix.AF_INET, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 && i == 9 {
			i = 10
		}
		head[i] = other
		if u, ok := parseUpdate(message(unix.RTM_NEWROUTE, head)); ok {
			t.Errorf("a route that does not lead here, by byte %d: got %v", i, u.route)
		}
	}
	for n := range 5 {
		if err := refusal(make([]byte, n)); err == nil {
			t.Errorf("a refusal of %d bytes is none", n)
		}
	}
	if err := refusal(binary.NativeEndian.AppendUint32(nil, ^uint32(unix.EPERM)+1)); err != unix.EPERM {
		t.Errorf("a refusal: got %v", err)
	}
	attr := func(kind uint16, text string) []byte {
		a := netip.MustParseAddr(text).AsSlice()
		b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(a)))
		return append(binary.NativeEndian.AppendUint16(b, kind), a...)
	}
	for want, attrs := range map[string][]byte{
		"2001:db8::1": attr(unix.IFA_ADDRESS, "2001:db8::1"),
		"192.0.2.1":   append(attr(unix.IFA_ADDRESS, "192.0.2.2"), attr(unix.IFA_LOCAL, "192.0.2.1")...),
	} {
		head := make([]byte, unix.SizeofIfAddrmsg)
		if u, ok := parseUpdate(message(unix.RTM_NEWADDR, head, attrs)); !ok || u.addr.String() != want {
			t.Errorf("an address: got %v, %v, want %s", u.addr, ok, want)
		}
	}
}

// TestTaggedFrames: only a complete Ethernet header can contain the interface's own address.
func TestTaggedFrames(t *testing.T) {
	mac := "\x02\x00\x00\x00\x00\x01"
	s := &Sniffer{host: &host{links: map[int32]link{1: {mac: mac}, 2: {}}}}
	for _, test := range []struct {
		index    int32
		hardware uint16
		link     string
		want     bool
	}{
		{1, unix.ARPHRD_ETHER, mac + mac, true},
		{1, unix.ARPHRD_ETHER, "\xff" + mac, false},
		{1, unix.ARPHRD_ETHER, mac[:5], false},
		{1, unix.ARPHRD_ETHER, "", false},
		{1, unix.ARPHRD_NONE, mac + mac, false},
		{2, unix.ARPHRD_ETHER, "", false},
	} {
		f := frame{from: &unix.RawSockaddrLinklayer{Ifindex: test.index, Hatype: test.hardware,
			Pkttype: unix.PACKET_OTHERHOST}, link: []byte(test.link)}
		if got := s.tagged(f); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}
