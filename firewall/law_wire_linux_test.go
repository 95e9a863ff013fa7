package firewall

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// wire is a packet socket that sees what arrives at the interfaces of a host.
type wire struct {
	fd   int
	loop bool // only the gateway's loopback interface
	flat bool // without Ethernet
	// unguarded are addresses of the machine behind if its ports are not guarded: what it sends from its own address,
	// as it does once connection tracking has forgotten a flow that DNAT led to it, is not from a guarded port.
	unguarded []netip.Addr
}

func (w *world) tap(h *lab.Host, dev string) *wire {
	w.Helper()
	t := &wire{loop: dev == "lo"}
	if !slices.Contains(w.way.listed, "behind") {
		t.unguarded = []netip.Addr{addressOf("behind", false), addressOf("behind", true)}
	}
	w.must(h.Do(func() (err error) {
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		roomy(t.fd)
		nic, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(t.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}),
				Ifindex: nic.Index}))
	}))
	w.Cleanup(func() { unix.Close(t.fd) })
	return t
}

func (t *wire) look(see *sight) error {
	b := make([]byte, 2048)
	for {
		n, err := unix.Read(t.fd, b)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		switch {
		case t.flat:
			t.read(see, b[:n])
		case n > 14:
			t.read(see, b[14:n])
		}
	}
}

// read examines an IP packet that arrived at the stranger.
func (t *wire) read(see *sight, b []byte) {
	source := sourceOf(b)
	proto, six, b := transport(b)
	if len(b) < 8 || slices.Contains(t.unguarded, source) {
		return
	}
	if proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6 {
		t.readError(see, proto, b)
		return
	}
	kind := service.Proto(proto)
	from, to := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if kind != service.TCP && kind != service.UDP || !isDoor(kind, from) && to != 4789 {
		return
	}
	switch {
	case kind == service.UDP && to == 4789 && len(b) > 30: // VXLAN
		t.read(see, b[30:])
	case kind == service.UDP && strings.HasPrefix(string(b[8:]), cookie): // the stranger's own datagram, echoed
	case kind == service.UDP && int(binary.BigEndian.Uint16(b[4:])) > len(b): // a fragment: only the stranger's own are
	case kind == service.UDP:
		see.add(six, kind, to, t.sign(signLeft))
	case len(b) < 20 || isLawSeq(binary.BigEndian.Uint32(b[4:]), to):
	case b[13]&nftables.Rst != 0:
		see.add(six, kind, to, signReset)
	default:
		see.add(six, kind, to, t.sign(signLeft))
		if b[13]&(nftables.Syn|nftables.Ack) == nftables.Syn|nftables.Ack {
			see.peer[familyIndex(six)][to] = binary.BigEndian.Uint32(b[4:])
		}
	}
}

func (t *wire) sign(s sign) sign {
	if t.loop {
		return signLoop
	}
	return s
}

// readError examines an ICMP error about a packet of the stranger's.
func (t *wire) readError(see *sight, proto byte, b []byte) {
	isError := proto == unix.IPPROTO_ICMPV6 && b[0] < 128 || proto == unix.IPPROTO_ICMP &&
		(b[0] == 3 || b[0] == 11 || b[0] == 12)
	if !isError || t.loop {
		return
	}
	inner, six, b := transport(b[8:])
	kind := service.Proto(inner)
	if len(b) >= 4 && (kind == service.TCP || kind == service.UDP) && isDoor(kind, binary.BigEndian.Uint16(b[2:])) {
		see.add(six, kind, binary.BigEndian.Uint16(b), signICMP)
	}
}

// sourceOf returns the source of an IP packet.
func sourceOf(b []byte) (a netip.Addr) {
	switch {
	case len(b) >= 40 && b[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(b[8:24])
	case len(b) >= 20 && b[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(b[12:16])
	}
	return a
}

// transport returns the transport header of an IP packet, if it is a plain one.
func transport(b []byte) (proto byte, six bool, segment []byte) {
	switch {
	case len(b) >= 40 && b[0]>>4 == 6:
		proto, b = b[6], b[40:]
		for len(b) >= 8 &&
			(proto == unix.IPPROTO_HOPOPTS || proto == unix.IPPROTO_DSTOPTS || proto == unix.IPPROTO_ROUTING ||
				proto == unix.IPPROTO_FRAGMENT) {
			size := 8 + 8*int(b[1])
			if proto == unix.IPPROTO_FRAGMENT {
				size = 8
			}
			proto, b = b[0], b[min(size, len(b)):]
		}
		return proto, true, b
	case len(b) >= 20 && b[0]>>4 == 4:
		return b[9], false, b[min(int(b[0]&15)*4, len(b)):]
	}
	return 0, false, nil
}
