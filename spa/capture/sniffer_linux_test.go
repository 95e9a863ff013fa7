package capture

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"no port":        {MaxLen: 1},
		"too many ports": {Ports: make([]uint16, 65), MaxLen: 1},
		"negative":       {Ports: []uint16{1}, MinLen: -1, MaxLen: 1},
		"none possible":  {Ports: []uint16{1}, MinLen: 2, MaxLen: 1},
		"too long":       {Ports: []uint16{1}, MaxLen: 1473},
	} {
		if s, err := Listen(c); err == nil {
			s.Close()
			t.Errorf("%s: Listen took it", name)
		}
	}
}

func TestGreatestConfig(t *testing.T) {
	client, gateway := lab.Pair(t)
	c := Config{MaxLen: 1472}
	for i := range uint16(64) {
		c.Ports = append(c.Ports, 62201-63+i)
	}
	s := read(t, listen(t, gateway, c))
	in := inject(t, client, "vc", gateway, "vs")
	for _, size := range []int{0, 1472} {
		in.send(t, in.frame(packet4(client4, gateway4, payload(size))))
		if p := s.expect(t); len(p.Data) != size {
			t.Errorf("got %d bytes, want %d", len(p.Data), size)
		}
	}
	in.send(t, in.frame(packet6(client6, addrPort("2001:db8::1", 62201-63), payload(1440))))
	s.expect(t)
	in.send(t, in.frame(withHeader(packet6(client6, gateway6, payload(1)), 60, padded...)))
	s.waitFor(t, Stats{}, Stats{Received: 4, Passed: 3, Extension: 1})
}

func TestDroppedByTheFirewall(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.Do(dropAll))
	s := read(t, listen(t, gateway, knocks))
	conn := dialUDP(t, client, client4, gateway4)
	_, err := conn.Write(payload(200))
	lab.Must(t, err)
	s.expect(t)
}

// dropAll drops incoming packets as early as a table that sees addresses can.
func dropAll() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "shut", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Name: "all", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	// nft: meta l4proto udp drop
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return c.Flush()
}

func TestForwarded(t *testing.T) {
	client, gateway := lab.Pair(t)
	inner := lab.New(t, "inner")[0]
	lab.Must(t, lab.Link(gateway, "in", inner, "out"))
	lab.Must(t, gateway.AddAddr("in", "198.51.100.1/24"))
	lab.Must(t, inner.AddAddr("out", "198.51.100.2/24"))
	lab.Must(t, inner.Route("default", "198.51.100.1"))
	lab.Must(t, client.Route("198.51.100.0/24", "192.0.2.1"))
	lab.Must(t, gateway.Forward())
	router, target := read(t, listen(t, gateway, knocks)), read(t, listen(t, inner, knocks))
	to := addrPort("198.51.100.2", 62201)
	conn := dialUDP(t, client, client4, to)
	_, err := conn.Write(payload(200))
	lab.Must(t, err)
	target.expect(t)
	router.waitFor(t, Stats{}, Stats{Received: 1, NotForUs: 1})
}

func TestOutgoingIsNotSeen(t *testing.T) {
	client, gateway := lab.Pair(t)
	s, far := read(t, listen(t, gateway, knocks)), read(t, listen(t, client, knocks))
	out := dialUDP(t, gateway, addrPort("192.0.2.1", 40000), addrPort("192.0.2.2", 62201))
	_, err := out.Write(payload(200))
	lab.Must(t, err)
	far.expect(t)
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(knock(client4, gateway4)))
	s.expect(t)
	s.waitFor(t, Stats{}, Stats{Received: 1, Passed: 1})
}

func TestBridgeAndPortAreOne(t *testing.T) {
	hosts := lab.New(t, "client", "gateway")
	client, gateway := hosts[0], hosts[1]
	lab.Must(t, lab.Link(client, "vc", gateway, "port"))
	lab.Must(t, gateway.Bridge("br0", "port"))
	lab.Must(t, client.AddAddr("vc", "192.0.2.2/24"))
	lab.Must(t, gateway.AddAddr("br0", "192.0.2.1/24"))
	index, _, err := gateway.Interface("br0")
	lab.Must(t, err)
	lab.Eventually(t, "the bridge to forward", func() bool { return isUp(t, gateway, "br0") })
	all := read(t, listen(t, gateway, knocks))
	named := knocks
	named.Interfaces = []string{"br0"}
	one := read(t, listen(t, gateway, named))
	in := inject(t, client, "vc", gateway, "br0")
	whole := change(knock(client4, gateway4), mend) // a bridge may check the IP header
	for _, s := range []reading{all, one} {
		in.send(t, in.frame(whole))
		if p := s.expect(t); p.Interface != index {
			t.Errorf("it came in by %d, want the bridge, %d", p.Interface, index)
		}
	}
	for _, s := range []reading{all, one} {
		s.waitFor(t, Stats{}, Stats{Received: 2, Passed: 2})
	}
}

func isUp(t *testing.T, h *lab.Host, dev string) bool {
	t.Helper()
	var state netlink.LinkOperState
	lab.Must(t, h.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil {
			state = l.Attrs().OperState
		}
		return err
	}))
	return state == netlink.OperUp
}

// A bridge reports that a port left it with the same message type that otherwise reports a deleted link.
func TestPortThatLeavesItsBridge(t *testing.T) {
	hosts := lab.New(t, "client", "gateway")
	client, gateway := hosts[0], hosts[1]
	lab.Must(t, lab.Link(client, "vc", gateway, "port"))
	lab.Must(t, gateway.Bridge("br0", "port"))
	s := listen(t, gateway, knocks)
	lab.Must(t, gateway.Do(func() error {
		l, err := netlink.LinkByName("port")
		if err != nil {
			return err
		}
		return netlink.LinkSetNoMaster(l)
	}))
	updates, err := s.host.events.receive()
	for ; err == nil; updates, err = s.host.events.receive() {
		for _, u := range updates {
			if u.kind == unix.RTM_DELLINK {
				t.Errorf("link %d is taken for gone", u.index)
			}
		}
	}
}

func TestLinksAreForgotten(t *testing.T) {
	hosts := lab.New(t, "client", "gateway")
	s := listen(t, hosts[1], knocks)
	before := len(s.host.links)
	lab.Must(t, lab.Link(hosts[0], "vc", hosts[1], "vs"))
	s.host.refresh()
	if got := len(s.host.links); got != before+1 {
		t.Errorf("%d links are known, want %d", got, before+1)
	}
	lab.Must(t, hosts[1].Delete("vs"))
	s.host.refresh()
	if got := len(s.host.links); got != before {
		t.Errorf("%d links are known, want %d", got, before)
	}
}

func TestInterfacesComeAndGo(t *testing.T) {
	for _, names := range [][]string{nil, {"nowhere", "late"}} {
		t.Run(fmt.Sprint(names), func(t *testing.T) {
			hosts := lab.New(t, "client", "gateway")
			client, gateway := hosts[0], hosts[1]
			c := knocks
			c.Interfaces = names
			s := read(t, listen(t, gateway, c))
			seen := map[int]bool{}
			for range 3 {
				lab.Must(t, lab.Link(client, "vc", gateway, "late"))
				lab.Must(t, gateway.AddAddr("late", "192.0.2.1/24"))
				in := inject(t, client, "vc", gateway, "late")
				in.send(t, in.frame(knock(client4, gateway4)))
				seen[s.expect(t).Interface] = true
				lab.Must(t, gateway.SetDown("late"))
				lab.Must(t, gateway.SetUp("late"))
				lab.Eventually(t, "the cable to carry packets again", func() bool { return isUp(t, client, "vc") })
				in.send(t, in.frame(knock(client4, gateway4)))
				s.expect(t)
				lab.Must(t, gateway.Delete("late"))
			}
			if len(seen) != 3 {
				t.Errorf("the interface came with %d indexes, want 3", len(seen))
			}
		})
	}
}

func TestNamedInterfaceOnly(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, lab.Link(client, "xc", gateway, "xs"))
	c := knocks
	c.Interfaces = []string{"xs"}
	s := read(t, listen(t, gateway, c))
	for dev, want := range map[string]Stats{
		"vs": {Received: 1, WrongInterface: 1},
		"xs": {Received: 1, Passed: 1},
	} {
		before := s.Stats()
		in := inject(t, client, dev[:1]+"c", gateway, dev)
		in.send(t, in.frame(knock(client4, gateway4)))
		s.waitFor(t, before, want)
	}
	// The name counts, not the interface's first index.
	lab.Must(t, gateway.Do(func() error { return rename("xs", "ys") }))
	lab.Eventually(t, "the cable to carry packets again", func() bool { return isUp(t, client, "xc") })
	before := s.Stats()
	in := inject(t, client, "xc", gateway, "ys")
	in.send(t, in.frame(knock(client4, gateway4)))
	s.waitFor(t, before, Stats{Received: 1, WrongInterface: 1})
}

func rename(from, to string) error {
	l, err := netlink.LinkByName(from)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetDown(l); err != nil {
		return err
	}
	if err := netlink.LinkSetName(l, to); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func TestLoopback(t *testing.T) {
	_, gateway := lab.Pair(t)
	named := knocks
	named.Interfaces = []string{"lo"}
	all, lo := read(t, listen(t, gateway, knocks)), read(t, listen(t, gateway, named))
	for _, c := range []struct{ from, to string }{
		{"127.0.0.1", "127.0.0.1"}, {"127.0.0.1", "127.1.2.3"}, {"192.0.2.1", "192.0.2.1"},
		{"::1", "::1"}, {"2001:db8::1", "2001:db8::1"},
	} {
		beforeAll, beforeLo := all.Stats(), lo.Stats()
		conn := dialUDP(t, gateway, addrPort(c.from, 40000), addrPort(c.to, 62201))
		_, err := conn.Write(payload(200))
		lab.Must(t, err)
		conn.Close()
		lo.waitFor(t, beforeLo, Stats{Received: 1, Passed: 1})
		all.waitFor(t, beforeAll, Stats{Received: 1, WrongInterface: 1})
	}
	before := lo.Stats()
	in := inject(t, gateway, "lo", gateway, "lo")
	in.dst, in.src = make(net.HardwareAddr, 6), make(net.HardwareAddr, 6)
	in.send(t, in.frame(knock(addrPort("224.0.0.1", 1), gateway4)))
	lo.waitFor(t, before, Stats{Received: 1, BadSource: 1})
	before = lo.Stats()
	in.send(t, in.frame(knock(client4, addrPort("192.0.2.77", 62201))))
	lo.waitFor(t, before, Stats{Received: 1, NotForUs: 1})
}

func TestAddressesComeAndGo(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	try := func(want Stats) {
		t.Helper()
		before := s.Stats()
		in.send(t, in.frame(knock(client4, addrPort("198.51.100.7", 62201))))
		s.waitFor(t, before, want)
	}
	no, yes := Stats{Received: 1, NotForUs: 1}, Stats{Received: 1, Passed: 1}
	try(no)
	lab.Must(t, gateway.AddAddr("vs", "198.51.100.7/32"))
	lab.Must(t, gateway.Do(func() error { return renew("vs", "198.51.100.7/32") }))
	try(yes)
	lab.Must(t, gateway.AddAddr("lo", "198.51.100.7/32")) // on two interfaces
	lab.Must(t, gateway.DelAddr("vs", "198.51.100.7/32"))
	try(yes)
	lab.Must(t, gateway.DelAddr("lo", "198.51.100.7/32"))
	lab.Eventually(t, "the address to be forgotten", func() bool {
		before := s.Stats()
		in.send(t, in.frame(knock(client4, addrPort("198.51.100.7", 62201))))
		lab.Eventually(t, "the packet", func() bool { return s.Stats().Received > before.Received })
		return s.Stats().NotForUs > before.NotForUs
	})
}

// renew makes the kernel report an address that already exists.
func renew(dev, prefix string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	a.ValidLft, a.PreferedLft = 3600, 3600
	return netlink.AddrReplace(l, a)
}

// A two-address network has no broadcast address.
func TestNetworkOfTwo(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.AddAddr("vs", "198.51.100.0/31"))
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(knock(addrPort("198.51.100.1", 9), addrPort("198.51.100.0", 62201))))
	s.waitFor(t, Stats{}, Stats{Received: 1, Passed: 1})
}

// The far end's address of a point-to-point link is not ours.
func TestPeerAddress(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.Do(func() error {
		l, err := netlink.LinkByName("vs")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("198.51.100.1/32")
		if err != nil {
			return err
		}
		if a.Peer, err = netlink.ParseIPNet("198.51.100.2/32"); err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	}))
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(knock(addrPort("198.51.100.2", 9), addrPort("198.51.100.1", 62201))))
	s.expect(t)
	in.send(t, in.frame(knock(client4, addrPort("198.51.100.2", 62201))))
	s.waitFor(t, Stats{}, Stats{Received: 2, Passed: 1, NotForUs: 1})
}

// More changes than the socket has room for, while nobody reads. The first one is still delivered, but is outdated.
func TestLostNotifications(t *testing.T) {
	client, gateway := lab.Pair(t)
	lab.Must(t, gateway.AddAddr("vs", "192.0.2.200/24"))
	sniffer := listen(t, gateway, knocks)
	lab.Must(t, unix.SetsockoptInt(sniffer.host.events.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
	lab.Must(t, gateway.DelAddr("vs", "2001:db8::1/64"))
	for i := 1; i <= 100; i++ {
		lab.Must(t, gateway.AddAddr("vs", fmt.Sprintf("198.51.100.%d/32", i)))
	}
	lab.Must(t, gateway.AddAddr("vs", "2001:db8::1/64"))
	lab.Must(t, gateway.DelAddr("vs", "192.0.2.200/24"))
	s := read(t, sniffer)
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(knock(client4, addrPort("198.51.100.100", 62201))))
	s.waitFor(t, Stats{}, Stats{Received: 1, Passed: 1})
	in.send(t, in.frame(knock(client4, addrPort("192.0.2.200", 62201))))
	s.waitFor(t, Stats{}, Stats{Received: 2, Passed: 1, NotForUs: 1})
	in.send(t, in.frame(knock(client6, gateway6)))
	s.waitFor(t, Stats{}, Stats{Received: 3, Passed: 2, NotForUs: 1})
}

// No packet may get in before the filter is attached, whatever is on the wire at that moment.
func TestFilterComesFirst(t *testing.T) {
	client, gateway := lab.Pair(t)
	conn := dialUDP(t, client, client4, addrPort("192.0.2.1", 9))
	stop := lab.Repeat(func() { conn.Write(payload(200)) }) // sometimes refused, because nothing listens there
	for range 10 {
		s := listen(t, gateway, knocks)
		seen := lab.Value(unix.GetsockoptTpacketStats(s.rings[0].fd, unix.SOL_PACKET, unix.PACKET_STATISTICS))(t)
		if seen.Packets != 0 {
			t.Errorf("%d packets came before the filter", seen.Packets)
		}
		lab.Must(t, s.Close())
	}
	stop()
}

func TestFilterIsLocked(t *testing.T) {
	gateway := lab.New(t, "gateway")[0]
	s, r := listen(t, gateway, knocks), respond(t, gateway)
	all := []bpf.Instruction{bpf.RetConstant{Val: 1 << 16}}
	for i, fd := range []int{s.rings[0].fd, s.rings[1].fd, r.fd4, r.fd6} {
		if err := attach(fd, all); !errors.Is(err, unix.EPERM) {
			t.Errorf("socket %d: a new filter: got %v, want EPERM", i, err)
		}
	}
}
