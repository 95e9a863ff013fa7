package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/dchest/siphash"
	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
)

const (
	knockPort  = 62201
	sharedPort = 443
	snap       = 400
)

var (
	stranger4 = netip.MustParseAddr("198.51.100.7")
	stranger6 = netip.MustParseAddr("2001:db8:7::7")
	own4      = netip.MustParseAddr("192.0.2.1")
	own6      = netip.MustParseAddr("2001:db8::1")
)

// A bench has a gate and its programs, which run without a socket or an interface (BPF_PROG_TEST_RUN).
type bench struct {
	*Gate
	gates          []spa.Gate
	four, six, xdp *ebpf.Program
}

// program loads code, or fails with the verifier's words.
func loaded(t testing.TB, kind ebpf.ProgramType, code asm.Instructions) *ebpf.Program {
	t.Helper()
	p, err := load(kind, code)
	if v, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		t.Fatalf("%+v", v)
	}
	lab.Must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func newBench(t testing.TB, gates ...keys.GateKey) *bench {
	t.Helper()
	lab.NeedRoot(t)
	b := &bench{}
	for _, key := range gates {
		b.gates = append(b.gates, spa.Gate{Key: key})
	}
	var err error
	b.Gate, err = Open(Config{Ports: []uint16{knockPort, sharedPort}, Shared: []uint16{sharedPort}, MinLen: spa.MinLen,
		MaxLen: spa.MaxLen, Keys: tagKeys(gates...)})
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, errRights) {
		lab.KernelLacks(t, "eBPF: "+err.Error())
	}
	lab.Must(t, err)
	t.Cleanup(func() { lab.Must(t, b.Close()) })
	b.SetOwn([]netip.Addr{own4, own6})
	b.four = loaded(t, ebpf.SocketFilter, b.program().packet4(snap))
	b.six = loaded(t, ebpf.SocketFilter, b.program().packet6(snap))
	b.xdp = loaded(t, ebpf.XDP, b.program().frames())
	return b
}

func tagKeys(gates ...keys.GateKey) (list []Key) {
	for _, g := range gates {
		k0, k1 := g.Tag()
		list = append(list, Key{k0, k1})
	}
	return list
}

// run returns what a program does with a frame.
func run(t testing.TB, p *ebpf.Program, frame []byte) uint32 {
	t.Helper()
	result, _, err := p.Test(frame)
	lab.Must(t, err)
	return result
}

// holds reports whether spa finds the tag of a head right.
func (b *bench) holds(head []byte) bool {
	packet := append(slices.Clone(head[:HeadLen]), make([]byte, spa.MinLen-HeadLen)...)
	id := &spa.Identity{Gates: b.gates, Window: time.Minute}
	_, err := spa.Open(packet, id, &keys.Registry{}, time.Unix(1, 0))
	return !errors.Is(err, spa.ErrGate)
}

// sealed returns a payload with a tag under one of the keys, or with none.
func sealed(r *rand.Rand, n int, list []Key) []byte {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(r.Uint32())
	}
	if i := r.IntN(len(list) + 1); i < len(list) && n >= HeadLen {
		binary.BigEndian.PutUint64(payload[32:], siphash.Hash(list[i].K0, list[i].K1, payload[:32]))
	}
	return payload
}

// datagram returns an IP packet.
func datagram(from, to netip.Addr, port uint16, payload []byte) []byte {
	var ip []byte
	n := udpHeader + len(payload)
	if from.Is4() {
		ip = slices.Concat([]byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protoUDP, 0, 0}, from.AsSlice(), to.AsSlice())
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Header+n))
	} else {
		ip = slices.Concat([]byte{0x60, 0, 0, 0, 0, 0, protoUDP, 64}, from.AsSlice(), to.AsSlice())
		binary.BigEndian.PutUint16(ip[4:], uint16(n))
	}
	for _, v := range []int{40000, int(port), n, 0} {
		ip = binary.BigEndian.AppendUint16(ip, uint16(v))
	}
	return append(ip, payload...)
}

// framed puts a link's header with VLAN tags before an IP packet.
func framed(ip []byte, tags ...uint16) []byte {
	f := make([]byte, 12)
	for _, kind := range tags {
		f = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(f, kind), 7)
	}
	kind := uint16(etherIPv4)
	if len(ip) > 0 && ip[0]>>4 == 6 {
		kind = etherIPv6
	}
	return append(binary.BigEndian.AppendUint16(f, kind), ip...)
}

// A verdict is what the model says of a packet: where its head is, or that it is none of the gate's or which check it
// fails.
type verdict string

const (
	accepted verdict = "accepted"
	others   verdict = "not a packet to a knock port"
)

// judge is the model for what comes after the ports.
func (b *bench) judge(ip []byte, at int, anyLength bool) verdict {
	n := int(binary.BigEndian.Uint16(ip[at+4:])) - udpHeader
	switch {
	case !anyLength && (n < spa.MinLen || n > spa.MaxLen):
		return "length"
	case len(ip) < at+udpHeader+HeadLen:
		return "cut"
	case !b.holds(ip[at+udpHeader:]):
		return "tag"
	}
	return accepted
}

func isKnockPort(ip []byte, at int) bool {
	return len(ip) >= at+udpHeader &&
		slices.Contains([]uint16{knockPort, sharedPort}, binary.BigEndian.Uint16(ip[at+2:]))
}

// model4 is the model of the filter for IPv4, from the documentation of the package.
func (b *bench) model4(ip []byte) verdict {
	if len(ip) < ipv4Header+udpHeader || ip[9] != protoUDP || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return others
	}
	at := int(ip[0]&0xf) * 4
	if !isKnockPort(ip, at) {
		return others
	}
	return b.judge(ip, at, ip[6]&0x20 != 0)
}

func (b *bench) model6(ip []byte) verdict {
	if len(ip) < ipv6Header+udpHeader {
		return others
	}
	at := ipv6Header
	switch ip[6] {
	case protoUDP:
	case 44, 0, 43, 60:
		if ip[6] == 44 && binary.BigEndian.Uint16(ip[42:])&0xfff8 != 0 || ip[40] != protoUDP {
			return others
		}
		at += 8 + 8*int(ip[41])
	default:
		return others
	}
	if !isKnockPort(ip, at) {
		return others
	}
	return b.judge(ip, at, at > ipv6Header)
}

// modelXDP is the model of the program on an interface.
func (b *bench) modelXDP(frame []byte) verdict {
	at, kind := 14, binary.BigEndian.Uint16(frame[12:])
	for range 2 {
		if (kind == etherVLAN || kind == etherQinQ) && len(frame) >= at+4 {
			at, kind = at+4, binary.BigEndian.Uint16(frame[at+2:])
		}
	}
	ip := frame[at:]
	var udp, total int
	var to netip.Addr
	switch {
	case kind == etherIPv4 && len(ip) >= 68 && ip[0] == 0x45 && ip[9] == protoUDP &&
		binary.BigEndian.Uint16(ip[6:])&0x3fff == 0:
		udp, total, to = 20, int(binary.BigEndian.Uint16(ip[2:]))-20, netip.AddrFrom4([4]byte(ip[16:]))
	case kind == etherIPv6 && len(ip) >= 88 && ip[0]>>4 == 6 && ip[6] == protoUDP:
		udp, total, to = 40, int(binary.BigEndian.Uint16(ip[4:])), netip.AddrFrom16([16]byte(ip[24:]))
	default:
		return others
	}
	if total != int(binary.BigEndian.Uint16(ip[udp+4:])) || binary.BigEndian.Uint16(ip[udp+2:]) != knockPort ||
		to != own4 && to != own6 {
		return others
	}
	return b.judge(ip, udp, false)
}

// mutations change headers.
var mutations = []func(r *rand.Rand, ip []byte) []byte{
	func(_ *rand.Rand, ip []byte) []byte { return ip },
	func(r *rand.Rand, ip []byte) []byte { ip[r.IntN(min(len(ip), 96))] ^= 1 << r.IntN(8); return ip },
	func(r *rand.Rand, ip []byte) []byte { ip[r.IntN(min(len(ip), 48))] = byte(r.Uint32()); return ip },
	func(r *rand.Rand, ip []byte) []byte { // the kernel runs programs with no less than an IP header
		return ip[:min(len(ip), ipv6Header+r.IntN(len(ip)))]
	},
	func(r *rand.Rand, ip []byte) []byte { return append(ip, make([]byte, r.IntN(40))...) },
	func(r *rand.Rand, ip []byte) []byte { // options, an extension header, a fragment
		n := 4 * (1 + r.IntN(10))
		if ip[0]>>4 == 4 {
			ip = slices.Insert(ip, ipv4Header, make([]byte, n)...)
			ip[0] = 0x45 + byte(n/4)
			return ip
		}
		ip[6] = []byte{0, 43, 44, 60, 50}[r.IntN(5)]
		header := make([]byte, 8*(1+r.IntN(4)))
		header[0], header[1] = protoUDP, byte(len(header)/8-1)
		return slices.Insert(ip, ipv6Header, header...)
	},
	func(r *rand.Rand, ip []byte) []byte {
		if ip[0]>>4 == 4 {
			binary.BigEndian.PutUint16(ip[6:], []uint16{0x2000, 0x2001, 1, 0x8000}[r.IntN(4)])
		}
		return ip
	},
}

// generate returns a packet like those that a knock port gets.
func (b *bench) generate(r *rand.Rand) []byte {
	from, to := stranger4, []netip.Addr{own4, stranger4}[r.IntN(2)]
	if r.IntN(2) == 0 {
		from, to = stranger6, []netip.Addr{own6, stranger6}[r.IntN(2)]
	}
	port := []uint16{knockPort, sharedPort, 53}[min(2, r.IntN(8)/3)]
	n := []int{spa.MinLen, spa.MaxLen, spa.MinLen - 1, spa.MaxLen + 1, r.IntN(400)}[min(4, r.IntN(8))]
	if r.IntN(2) == 0 {
		n = spa.MinLen + r.IntN(spa.MaxLen-spa.MinLen)
	}
	ip := datagram(from, to, port, sealed(r, n, tagKeys(b.keys()...)))
	for range r.IntN(3) {
		if len(ip) > 0 {
			ip = mutations[r.IntN(len(mutations))](r, ip)
		}
	}
	if short := ipv6Header - len(ip); short > 0 && ip[0]>>4 == 6 { // it was IPv4, with a payload of a few bytes
		ip = append(ip, make([]byte, short)...)
	}
	return ip
}

func (b *bench) keys() (list []keys.GateKey) {
	for _, g := range b.gates {
		list = append(list, g.Key)
	}
	return list
}

// TestAgainstModel: the programs in the kernel decide about random packets as the model with spa's own check of the
// tag does, and count each by its reason.
func TestAgainstModel(t *testing.T) {
	for n := 1; n <= 2; n++ {
		t.Run(fmt.Sprint(n, " keys"), func(t *testing.T) {
			b := newBench(t, []keys.GateKey{keys.NewGateKey(), keys.NewGateKey()}[:n]...)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 1))
			seen := map[string]int{}
			for range 30000 {
				b.compare(t, b.generate(r), seen)
			}
			for _, want := range []string{"4 accepted", "4 tag", "4 length", "4 cut", "4 " + string(others),
				"6 accepted", "6 tag", "6 length", "6 cut", "6 " + string(others),
				"xdp accepted", "xdp tag", "xdp length", "xdp " + string(others)} {
				if seen[want] < 20 {
					t.Errorf("only %d cases of %q", seen[want], want)
				}
			}
		})
	}
}

// compare runs a packet through the programs that it could come to.
func (b *bench) compare(t *testing.T, ip []byte, seen map[string]int) {
	t.Helper()
	check := func(name string, p *ebpf.Program, frame []byte, want verdict, drop, pass uint32) {
		t.Helper()
		before := b.Counts()
		got := run(t, p, frame)
		if pass == xdpPass && want != accepted && want != others && got == pass { // a new second has begun
			b.exhaust()
			got = run(t, p, frame)
		}
		expected, counted := drop, want
		if want == accepted || pass == xdpPass && want == others {
			expected, counted = pass, others
		}
		if got != expected || b.Counts() != counting(before, counted, pass == xdpPass) {
			t.Fatalf("%s: %s: got %d and counts %+v after %+v\n%x", name, want, got, b.Counts(), before, frame)
		}
		seen[name+" "+string(want)]++
	}
	if ip[0]>>4 == 6 {
		check("6", b.six, framed(ip), b.model6(ip), 0, snap)
	} else {
		check("4", b.four, framed(ip), b.model4(ip), 0, snap)
	}
	for _, tags := range [][]uint16{nil, {etherVLAN}, {etherQinQ, etherVLAN}} {
		frame := framed(ip, tags...)
		b.exhaust()
		check("xdp", b.xdp, frame, b.modelXDP(frame), xdpDrop, xdpPass)
	}
}

// exhaust uses up what the XDP gate lets through in the next hour, on every processor.
func (b *bench) exhaust() {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now)
	for cpu := range b.cpus {
		*word64(b.counts, cpu<<countShift+filledOf) = uint64(now.Nano()) + 3600*second
		*word64(b.counts, cpu<<countShift+budgetOf) = 0
	}
}

// counting returns counts with one more packet of a reason.
func counting(c Counts, why verdict, xdp bool) Counts {
	counted := map[verdict]*uint64{"length": &c.Length, "cut": &c.Cut, "tag": &c.Tag}[why]
	if counted == nil {
		return c
	}
	*counted++
	if xdp {
		c.XDP++
	}
	return c
}
