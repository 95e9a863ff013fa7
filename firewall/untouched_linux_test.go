package firewall

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// What the guard leaves alone, although it looks like something that concerns a guarded port.

// TestTransitOfAFormerClient: a client whose grant has ended still passes through the gateway to machines that no
// service lists, on a port of the same number, although sessions of that port end with their grants.
func TestTransitOfAFormerClient(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		listed := map[string]string{"IPv4": "198.51.100.9", "IPv6": "2001:db8:1::9"}[f.name]
		s := k.guarded(t, func(c *Config) {
			c.Cut = rangesOf("tcp/22")
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(listed)}, Ports: rangesOf("tcp/22")}}
		})
		s.inner()
		s.grant("alice", f.alice, long)
		s.connect(f.alice, f.gateway, "22")
		s.revoke(Match{})
		s.dark(f.alice, f.gateway, "22")
		s.connect(f.alice, innerAddr[f.name], "22")
	})
}

// TestRoutedAddressThatIsLed: the host may lead packets for an address that is not its own to a machine behind it.
func TestRoutedAddressThatIsLed(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.inner()
		far := map[string][2]string{"IPv4": {"203.0.113.99", "192.0.2.1"}, "IPv6": {"2001:db8:9::99", "2001:db8::1"}}[f.name]
		s.must(s.client.Route(fmt.Sprintf("%s/%d", far[0], netip.MustParseAddr(far[0]).BitLen()), far[1]))
		s.nft(fmt.Sprintf("table inet leads { chain c { type nat hook prerouting priority -100; %[1]s daddr %[2]s "+
			"dnat %[1]s to %[3]s; }; }", nftFamily[f.name], far[0], innerAddr[f.name]))
		s.connect(f.stranger, far[0], "22")
	})
}

// TestOwnAddressFromOutside: a datagram with the host's own address that comes back from the network reaches a port
// that is not guarded. The kernel does not check that for IPv6.
func TestOwnAddressFromOutside(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, guarding("udp/5000"))
		own := netip.MustParseAddr("2001:db8::1")
		server, theirs := s.udp(s.gw, "[2001:db8::1]:7001"), s.udp(s.gw, "[2001:db8::1]:5000")
		s.frame(scan{proto: service.UDP}.packet(own, own, 5000, 5000))
		s.frame(scan{proto: service.UDP}.packet(own, own, 7000, 7001))
		if !s.gets(server, lab.Patience) {
			t.Error("the datagram was lost")
		}
		if s.gets(theirs, time.Millisecond) {
			t.Error("a datagram from a guarded port to itself was delivered")
		}
	})
}

// frame sends an IP packet from the client to the gateway's interface, whatever its addresses.
func (s *site) frame(packet []byte) {
	s.Helper()
	s.frameBy(s.client, "vc", "vs", packet)
}

// frameBy sends an IP packet by an interface of a host to an interface of the gateway.
func (s *site) frameBy(h *lab.Host, by, toward string, packet []byte) {
	s.Helper()
	index, _, err := h.Interface(by)
	s.must(err)
	_, mac, err := s.gw.Interface(toward)
	s.must(err)
	to := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index, Halen: 6}
	copy(to.Addr[:], mac)
	if packet[0]>>4 == 6 {
		to.Protocol = htons(unix.ETH_P_IPV6)
	}
	s.must(h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &to)
	}))
}

// arrives reports whether an IP packet that matches arrives at a host while do runs, or soon after.
func (s *site) arrives(h *lab.Host, match func([]byte) bool, do func()) bool {
	s.Helper()
	var fd int
	s.must(h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	defer unix.Close(fd)
	s.must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	do()
	b := make([]byte, 2048)
	for give := time.Now().Add(silence); time.Now().Before(give); {
		n, peer, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			continue
		}
		link, ok := peer.(*unix.SockaddrLinklayer)
		if ok && link.Pkttype != unix.PACKET_OUTGOING && n >= 40 && match(b[:n]) {
			return true
		}
	}
	return false
}

// TestTargetAnswersByAnotherLink: a machine behind may send its answers by another link than the one by which the
// gateway reaches it.
func TestTargetAnswersByAnotherLink(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: rangesOf("tcp/22")}}
		})
		inner := s.inner()
		s.must(lab.Link(s.gw, "in2", inner, "eth1"))
		for _, a := range []string{"203.0.113.1/24", "2001:db8:2::1/64"} {
			s.must(s.gw.AddAddr("in2", a))
		}
		for _, a := range []string{"203.0.113.5/24", "2001:db8:2::5/64"} {
			s.must(inner.AddAddr("eth1", a))
		}
		s.must(inner.Route("192.0.2.0/24", "203.0.113.1"))
		s.must(inner.Route("2001:db8::/64", "2001:db8:2::1"))
		for _, dev := range []string{"all", "in2"} {
			s.must(s.gw.Sysctl("net.ipv4.conf."+dev+".rp_filter", "0"))
		}
		for _, dev := range []string{"all", "eth0"} {
			s.must(inner.Sysctl("net.ipv4.conf."+dev+".rp_filter", "0"))
		}
		s.dark(f.alice, innerAddr[f.name], "22")
		s.must(s.Grant(t.Context(), []Grant{s.toInner("alice", f.alice, f)}, time.Now()))
		s.connect(f.alice, innerAddr[f.name], "22")
	})
}

// TestForgedOpening: a stranger whose segment reached a machine behind while the guard was away, and who claims to be
// that machine and to open the connection from the other side, gets nothing through when the guard is back.
func TestForgedOpening(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: rangesOf("tcp/22")}}
		})
		inner := s.behind()
		mute := "table inet mute { chain c { type filter hook input priority 0; tcp dport 22 drop; }; }" // it answers nothing
		s.nftOn(inner, mute)
		s.mute(s.client) // its kernel knows nothing of what is sent in its name
		for _, dev := range []string{"all", "vs"} {
			s.must(s.gw.Sysctl("net.ipv4.conf."+dev+".rp_filter", "0"))
		}
		s.flushRuleset()
		s.nft("table inet tracks { chain c { type filter hook prerouting priority 0; ct state established accept; }; }")
		me := netip.AddrPortFrom(netip.MustParseAddr(f.stranger), 4000)
		target := netip.AddrPortFrom(netip.MustParseAddr(innerAddr[f.name]), 22)
		send := func(p packet) {
			t.Helper()
			for _, b := range p.bytes() {
				s.frame(b)
			}
		}
		through := func(sh shape, ack uint32) bool {
			t.Helper()
			at := map[string]int{"IPv4": 20, "IPv6": 40}[f.name]
			return s.arrives(inner, func(b []byte) bool {
				return len(b) >= at+20 && b[at] == 4000>>8 && b[at+1] == 4000&0xff && b[at+13] == tcpFlagsOf[sh]
			}, func() { send(packet{shape: sh, from: me, to: target, seq: 1000, ack: ack}) })
		}
		if !through(shapeSYN, 0) {
			t.Fatal("nothing arrives while the guard is away")
		}
		s.load(0)
		send(packet{shape: shapeSYN, from: target, to: me, seq: 2000})
		if through(shapeSYNACK, 2001) {
			t.Error("a segment of the stranger's arrives")
		}
	})
}
