package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/dchest/siphash"
	"github.com/vishvananda/netlink"

	"sallyport/spa/capture/gate"
	"sallyport/spa/lab"
)

var tagKey = gate.Key{K0: 0x0706050403020100, K1: 0x0f0e0d0c0b0a0908}

// under returns what is captured, with a gate.
func under(mode string) Config {
	c := knocks
	c.Gate = Gate{Mode: mode, Keys: []gate.Key{{K0: 1, K1: 2}, tagKey}, Shared: []uint16{443}}
	return c
}

// hasTag reports whether the tag is right.
func hasTag(b []byte) bool {
	return len(b) >= gate.HeadLen &&
		binary.BigEndian.Uint64(b[32:]) == siphash.Hash(tagKey.K0, tagKey.K1, b[:32])
}

// sealed returns a payload of its own for each number, with a right tag or a wrong one.
func sealed(n, size int, good bool) []byte {
	b := payload(size)
	binary.BigEndian.PutUint32(b, uint32(n))
	binary.BigEndian.PutUint64(b[32:], siphash.Hash(tagKey.K0, tagKey.K1, b[:32]))
	if !good {
		b[32]++
	}
	return b
}

// wantGate skips the test where the kernel has no eBPF.
func (s *Sniffer) wantGate(t testing.TB, mode string) {
	t.Helper()
	state := s.Gate()
	if mode != "none" && state.Mode == "none" {
		lab.KernelLacks(t, "eBPF: "+strings.Join(state.Why, "; "))
	}
	if state.Mode != mode {
		t.Fatalf("the gate is %+v, want %s", state, mode)
	}
}

// dressings put a packet into each kind of frame that a gateway gets.
func dressings(in injector, packet []byte) map[string][]byte {
	if packet[0]>>4 == 4 {
		return map[string][]byte{
			"plain": in.frame(packet), "tagged": tagged(in, 10, packet), "priority": tagged(in, 0xe000, packet),
			"padded":       in.frame(append(bytes.Clone(packet), 1, 2, 3)),
			"options":      in.frame(withOptions(packet, 1, 1, 1, 1)),
			"most options": in.frame(withOptions(packet, make([]byte, 40)...)),
			"fragment":     in.frame(change(packet, set16(6, 0x2000))), "later": in.frame(change(packet, set16(6, 0x2001))),
			"checksum": in.frame(change(packet, set16(26, 1))),
			"cut":      in.frame(packet[:50]), "short of UDP": in.frame(change(packet, set16(24, 210))),
		}
	}
	return map[string][]byte{
		"plain": in.frame(packet), "tagged": tagged(in, 10, packet),
		"hop by hop": in.frame(withHeader(packet, 0, padded...)), "routing": in.frame(withHeader(packet, 43, padded...)),
		"destination": in.frame(withHeader(packet, 60, padded...)),
		"atomic":      in.frame(withHeader(packet, 44, 0, 0, 0, 0, 0, 0, 1)),
		"two":         in.frame(withHeader(withHeader(packet, 60, padded...), 0, padded...)),
		"cut":         in.frame(packet[:70]),
	}
}

// datagram returns a packet of the destination's family.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	if to.Addr().Is4() {
		return packet4(from, to, payload)
	}
	return packet6(from, to, payload)
}

// population returns frames of each kind with payloads of their own.
func population(in injector) map[string][]byte {
	all := map[string][]byte{}
	n := 0
	for _, good := range []bool{true, false} {
		for _, size := range []int{167, 168, 200, 256, 257} {
			for _, to := range []netip.AddrPort{gateway4, gateway6, addrPort("192.0.2.1", 443), addrPort("192.0.2.1", 53),
				addrPort("192.0.2.77", 62201), addrPort("2001:db8::77", 62201)} {
				packet := func() []byte { n++; return datagram(senderTo(to), to, sealed(n, size, good)) }
				for name := range dressings(in, packet()) {
					all[fmt.Sprint(name, " ", size, " to ", to, " good: ", good)] = dressings(in, packet())[name]
				}
			}
		}
	}
	return all
}

// hearing sends all frames and returns the payloads that the sniffer passes, each once.
func (r reading) hearing(t *testing.T, in injector, frames map[string][]byte, round int) map[string]bool {
	t.Helper()
	for range 2500 { // more than XDP lets through
		in.send(t, in.frame(packet4(client4, gateway4, sealed(0, 200, false))))
	}
	heard := map[string]bool{}
	for _, frame := range frames {
		in.send(t, frame)
		r.drain(heard)
	}
	for i, last := range [][]byte{packet4(client4, gateway4, sealed(1<<30+2*round, 200, true)),
		packet6(client6, gateway6, sealed(1<<30+2*round+1, 200, true))} {
		in.send(t, in.frame(last))
		marker := string(sealed(1<<30+2*round+i, 200, true))
		for !heard[marker] {
			heard[string(r.expect(t).Data)] = true
		}
		delete(heard, marker)
	}
	return heard
}

func (r reading) drain(heard map[string]bool) {
	for {
		select {
		case p := <-r.packets:
			heard[string(p.Data)] = true
		default:
			return
		}
	}
}

// TestGateLosesNothing: with each gate the sniffer passes the same packets as without, less those with a wrong tag.
func TestGateLosesNothing(t *testing.T) {
	client, gateway := lab.Pair(t)
	in := inject(t, client, "vc", gateway, "vs")
	frames := population(in)
	want := map[string]bool{}
	for round, mode := range []string{"none", "socket", "auto", "xdp"} {
		s := read(t, listen(t, gateway, under(mode)))
		s.wantGate(t, map[string]string{"auto": "socket"}[mode]+map[bool]string{true: mode}[mode != "auto"])
		heard := s.hearing(t, in, frames, round)
		if mode == "none" {
			maps.DeleteFunc(heard, func(data string, _ bool) bool { return !hasTag([]byte(data)) })
			want = heard
			if len(want) != 36 { // three sizes, twelve ways to send each
				t.Fatalf("only %d packets pass without a gate", len(want))
			}
		}
		if !maps.Equal(heard, want) {
			t.Errorf("gate %s: passed %d packets, want %d", mode, len(heard), len(want))
		}
		st := s.Stats()
		if mode != "none" && (st.Gate.Tag < 2500 || st.Gate.Length == 0 || st.Gate.Cut == 0) ||
			(mode == "xdp") != (st.Gate.XDP > 0) {
			t.Errorf("gate %s counts %+v", mode, st.Gate)
		}
		if good := uint64(len(frames) / 2); mode != "none" && st.Received > good {
			t.Errorf("gate %s: the server was woken %d times, and only %d frames have a good tag", mode, st.Received, good)
		}
		lab.Must(t, s.Close())
		if got := s.Stats().Gate; got != st.Gate {
			t.Errorf("after Close the gate counts %+v, before it %+v", got, st.Gate)
		}
	}
}

// TestGateCopies: after the sniffer is told of a copy, it hears no other; keys that replace others hold at once.
func TestGateCopies(t *testing.T) {
	client, gateway := lab.Pair(t)
	in := inject(t, client, "vc", gateway, "vs")
	for _, mode := range []string{"socket", "xdp"} {
		s := read(t, listen(t, gateway, under(mode)))
		s.wantGate(t, mode)
		for i, to := range []netip.AddrPort{gateway4, gateway6} {
			knock := func(n int, from netip.AddrPort) []byte {
				return in.frame(datagram(from, to, sealed(10*i+n, 200, true)))
			}
			other := map[bool]netip.AddrPort{true: addrPort("192.0.2.3", 9), false: addrPort("2001:db8::3", 9)}[i == 0]
			in.send(t, knock(1, senderTo(to)))
			s.expect(t)
			in.send(t, knock(1, senderTo(to)))
			s.Copied(s.expect(t), false)
			in.send(t, knock(1, senderTo(to))) // dropped
			in.send(t, knock(1, other))
			p := s.expect(t)
			if p.From != other {
				t.Errorf("%s: got a packet from %v, want the copy from another address", mode, p.From)
			}
			s.Copied(p, true)
			in.send(t, knock(1, other))
			in.send(t, knock(1, senderTo(to)))
			in.send(t, knock(2, senderTo(to)))
			if got := s.expect(t); !bytes.Equal(got.Data, sealed(10*i+2, 200, true)) {
				t.Errorf("%s: another copy passes", mode)
			}
		}
		lab.Eventually(t, "counts", func() bool {
			return s.Stats().Gate.Spent == 4 && s.Stats().Gate.Elsewhere == 2
		})
		s.SetGateKeys([]gate.Key{{K0: 3, K1: 4}})
		before := s.Stats().Gate.Tag
		in.send(t, in.frame(packet4(client4, gateway4, sealed(5, 200, true))))
		lab.Eventually(t, "a drop", func() bool { return s.Stats().Gate.Tag == before+1 })
		lab.Must(t, s.Close())
	}
}

// TestGateOnBoundSockets: bound sockets have the gate as well.
func TestGateOnBoundSockets(t *testing.T) {
	client, gateway := lab.Pair(t)
	for _, mode := range []string{"none", "socket", "xdp"} {
		var b *Bound
		lab.Must(t, gateway.Do(func() (err error) {
			c := under(mode)
			c.Ports = c.Ports[:1]
			b, err = Bind(c, 0)
			return err
		}))
		if got := b.Gate().Mode; got != mode {
			t.Fatalf("the gate is %+v, want %s", b.Gate(), mode)
		}
		for i, c := range []struct{ from, to netip.AddrPort }{{client4, gateway4}, {client6, gateway6}} {
			conn := dialUDP(t, client, netip.AddrPortFrom(c.from.Addr(), 0), c.to)
			send := func(n, size int, good bool) { lab.Value(conn.Write(sealed(100*i+n, size, good)))(t) }
			next := func() Packet {
				p := lab.Value(b.Read())(t)
				for mode == "none" && !hasTag(p.Data) {
					p = lab.Value(b.Read())(t)
				}
				return p
			}
			for n := range 10 {
				send(n, 200, false)
				send(n, 150, true)
				send(n, 300, true)
			}
			for n, size := range []int{168, 256} {
				send(20+n, size, true)
				p := next()
				if !bytes.Equal(p.Data, sealed(100*i+20+n, size, true)) {
					t.Errorf("gate %s: another packet passes", mode)
				}
				b.Copied(p, n == 1)
				send(20+n, size, true)
				if mode == "none" {
					next()
				}
			}
			send(22, 200, true)
			if p := next(); !bytes.Equal(p.Data, sealed(100*i+22, 200, true)) {
				t.Errorf("gate %s: got another packet than the last", mode)
			}
			conn.Close()
		}
		if st := b.Stats().Gate; mode != "none" && (st.Tag != 20 || st.Length != 40 || st.Spent != 2 || st.Elsewhere != 2) {
			t.Errorf("gate %s: counts %+v", mode, st)
		}
		lab.Must(t, b.Close())
	}
}

// TestXDPLosesNothingOfOthers: an XDP gate on a router drops nothing that is for another host, or for a port that the
// host serves too, and follows the host's addresses.
func TestXDPLosesNothingOfOthers(t *testing.T) {
	hosts := lab.New(t, "client", "gateway", "inside")
	client, gateway, inside := hosts[0], hosts[1], hosts[2]
	lab.Must(t, lab.Link(client, "vc", gateway, "vs"))
	lab.Must(t, lab.Link(gateway, "lan", inside, "vi"))
	for _, a := range []struct {
		host        *lab.Host
		dev, prefix string
	}{{client, "vc", "192.0.2.2/24"}, {gateway, "vs", "192.0.2.1/24"}, {gateway, "lan", "198.51.100.1/24"},
		{inside, "vi", "198.51.100.2/24"}} {
		lab.Must(t, a.host.AddAddr(a.dev, a.prefix))
	}
	lab.Must(t, client.Route("198.51.100.0/24", "192.0.2.1"))
	lab.Must(t, inside.Route("192.0.2.0/24", "198.51.100.1"))
	lab.Must(t, gateway.Forward())
	s := read(t, listen(t, gateway, under("xdp")))
	s.wantGate(t, "xdp")
	for _, c := range []struct {
		host *lab.Host
		to   string
	}{{inside, "198.51.100.2:62201"}, {gateway, "192.0.2.1:443"}, {gateway, "192.0.2.1:53"}} {
		var server *net.UDPConn
		to := netip.MustParseAddrPort(c.to)
		lab.Must(t, c.host.Do(func() (err error) {
			server, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(to))
			return err
		}))
		conn := dialUDP(t, client, addrPort("192.0.2.2", 0), to)
		lab.Must(t, server.SetDeadline(time.Now().Add(lab.Patience)))
		for range 3 * gate.Unhindered { // more than XDP lets through
			conn.Write(payload(200))
		}
		buf := make([]byte, 300)
		for range 20 {
			conn.Write(payload(200))
			lab.Value(server.Read(buf))(t)
		}
		server.Close()
	}
	if n := s.Stats().Gate.XDP; n != 0 {
		t.Errorf("%d packets for others were dropped", n)
	}
	later := dialUDP(t, client, addrPort("192.0.2.2", 0), netip.MustParseAddrPort("192.0.2.9:62201"))
	lab.Must(t, gateway.AddAddr("vs", "192.0.2.9/24"))
	lab.Eventually(t, "the gate to know the new address", func() bool {
		for range 2 * gate.Unhindered {
			later.Write(payload(200))
		}
		return s.Stats().Gate.XDP > 0
	})
}

// TestXDPBesideAnother: where another XDP program is, it stays, the gate is on the sockets, and says why.
func TestXDPBesideAnother(t *testing.T) {
	client, gateway := lab.Pair(t)
	listen(t, gateway, under("socket")).wantGate(t, "socket")
	var theirs bpflink.Link
	lab.Must(t, gateway.Do(func() error {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
		if err != nil {
			return err
		}
		defer program.Close()
		index, _, err := gateway.Interface("vs")
		if err == nil {
			theirs, err = bpflink.AttachXDP(bpflink.XDPOptions{Program: program, Interface: index})
		}
		return err
	}))
	t.Cleanup(func() { theirs.Close() })
	s := read(t, listen(t, gateway, under("xdp")))
	state := s.Gate()
	if state.Mode != "socket" || len(state.Why) != 1 || !strings.Contains(state.Why[0], "vs has another XDP program") {
		t.Errorf("the gate is %+v", state)
	}
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(packet4(client4, gateway4, sealed(1, 200, true))))
	s.expect(t)
	if _, err := theirs.Info(); err != nil {
		t.Errorf("the other program is gone: %v", err)
	}
}

// TestGateWithoutRights: without the right to load programs the sniffer hears what it hears without a gate, and says
// why it has none.
func TestGateWithoutRights(t *testing.T) {
	var g gating
	calls := 0
	err := g.open(under("auto"), func(_ Config, opened *gate.Gate) error {
		calls++
		if opened != nil {
			return errors.New("no such right")
		}
		return nil
	})
	if err != nil || calls == 0 || g.state.Mode != "none" || len(g.state.Why) != 1 || g.Gate.Counts() != (gate.Counts{}) {
		t.Errorf("got %v after %d calls, and %+v", err, calls, g.state)
	}
}

// TestXDPInterfaces: the gate goes onto interfaces with Ethernet frames only, and is not reported on one that is gone.
func TestXDPInterfaces(t *testing.T) {
	_, gateway := lab.Pair(t)
	lab.Must(t, gateway.Do(func() error {
		tunnel := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
		return errors.Join(netlink.LinkAdd(tunnel), netlink.LinkSetUp(tunnel))
	}))
	s := read(t, listen(t, gateway, under("xdp")))
	s.wantGate(t, "xdp")
	if on := s.Gate().XDP; len(on) != 1 || !strings.HasPrefix(on[0], "vs ") {
		t.Errorf("the gate is on %q", on)
	}
	lab.Must(t, gateway.Do(func() error {
		link, err := netlink.LinkByName("vs")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		return err
	}))
	lab.Eventually(t, "the loss to be reported", func() bool {
		g := s.Gate()
		return g.Mode == "socket" && len(g.XDP) == 0 && len(g.Why) == 1 && strings.Contains(g.Why[0], "is gone")
	})
}
