package gate

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// TestVectors: the kernel refuses a packet of the protocol's vectors if and only if its verdict is "length" or "gate".
func TestVectors(t *testing.T) {
	const dir = "../../testdata/vectors"
	packets := 0
	for _, file := range lab.Value(os.ReadDir(dir))(t) {
		var verdict string
		var payload []byte
		var gates []keys.GateKey
		for line := range strings.Lines(string(lab.Value(os.ReadFile(filepath.Join(dir, file.Name())))(t))) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch name {
			case "verdict":
				verdict = value
			case "packet":
				payload = lab.Value(hex.DecodeString(value))(t)
			case "gate key":
				gates = append(gates, keys.GateKeyFromBytes([keys.Size]byte(lab.Value(hex.DecodeString(value))(t))))
			}
		}
		if strings.HasPrefix(verdict, "receipt") || strings.HasPrefix(verdict, "token") {
			continue
		}
		packets++
		t.Run(file.Name(), func(t *testing.T) {
			b := newBench(t, gates...)
			b.exhaust()
			passes := verdict != "length" && verdict != "gate"
			four, six := datagram(stranger4, own4, knockPort, payload), datagram(stranger6, own6, knockPort, payload)
			got4, got6 := run(t, b.four, framed(four)) == snap, run(t, b.six, framed(six)) == snap
			if got4 != passes || got6 != passes {
				t.Errorf("verdict %s: IPv4 passes: %v, IPv6: %v", verdict, got4, got6)
			}
		})
	}
	if packets < 50 {
		t.Errorf("only %d vectors have a packet", packets)
	}
}

// good returns frames of one packet with a good tag, from two addresses in each family.
func (b *bench) good(r *rand.Rand) (payload []byte, frames map[netip.Addr][]byte) {
	payload = sealed(r, 200, tagKeys(b.keys()...))
	for !b.holds(payload) {
		payload = sealed(r, 200, tagKeys(b.keys()...))
	}
	frames = map[netip.Addr][]byte{}
	for _, from := range []netip.Addr{stranger4, netip.MustParseAddr("203.0.113.9")} {
		frames[from] = framed(datagram(from, own4, knockPort, payload))
	}
	for _, from := range []netip.Addr{stranger6, netip.MustParseAddr("2001:db8:9::9")} {
		frames[from] = framed(datagram(from, own6, knockPort, payload))
	}
	return payload, frames
}

// passes reports whether each program that sees the frame lets it through.
func (b *bench) passes(t *testing.T, frame []byte) bool {
	t.Helper()
	socket := b.four
	if frame[14]>>4 == 6 {
		socket = b.six
	}
	b.exhaust()
	on, in := run(t, b.xdp, frame) == xdpPass, run(t, socket, frame) == snap
	if on != in {
		t.Errorf("XDP lets it through: %v, the socket: %v", on, in)
	}
	return in
}

// TestCopies: the kernel drops a packet only from the address that a copy came from or, once a copy came from another
// address than the packet, from any. It drops no other packet, even if many were noted.
func TestCopies(t *testing.T) {
	b := newBench(t, keys.NewGateKey())
	r := rand.New(rand.NewPCG(1, 2))
	payload, frames := b.good(r)
	wantOnly := func(what string, blocked func(netip.Addr) bool) {
		t.Helper()
		for from, frame := range frames {
			if passes := b.passes(t, frame); passes == blocked(from) {
				t.Errorf("%s: from %v: passes: %v", what, from, passes)
			}
		}
	}
	wantOnly("nothing noted", func(netip.Addr) bool { return false })
	b.Copied(payload, stranger4, false)
	wantOnly("a copy from the same address", func(a netip.Addr) bool { return a == stranger4 })
	spent := b.Counts().Spent
	b.Copied(payload, stranger6, true)
	wantOnly("a copy from another address", func(netip.Addr) bool { return true })
	if c := b.Counts(); c.Spent <= spent || c.Elsewhere == 0 || c.XDP == 0 {
		t.Errorf("counts %+v", c)
	}
	if twin := append([]byte{}, payload...); true { // the same nonce, of another client
		twin[31] ^= 1
		b.Copied(twin, stranger4, true)
	}
	for range 3 * copySets * ways {
		noise, _ := b.good(r)
		b.Copied(noise, stranger4, true)
	}
	for range 1000 {
		_, fresh := b.good(r)
		for from, frame := range fresh {
			if !b.passes(t, frame) {
				t.Fatalf("a fresh packet from %v is dropped", from)
			}
		}
	}
}

// TestBudget: an interface lets a burst of packets through that it would drop, then no more than come due, and some
// again at once: nobody can make the host fall silent for longer than its own limit of answers does.
func TestBudget(t *testing.T) {
	b := newBench(t, keys.NewGateKey())
	forged := framed(datagram(stranger4, own4, knockPort, make([]byte, 200)))
	opts := ebpf.RunOptions{Data: forged, Repeat: 1}
	passes := func() bool { return lab.Value(b.xdp.Run(&opts))(t) == xdpPass }
	lab.Eventually(t, "a burst that uses up the budget", func() bool {
		passed := 0
		before := b.Counts().XDP
		for range 4 * Unhindered {
			if passes() {
				passed++
			}
		}
		dropped := b.Counts().XDP - before
		return passed >= Unhindered && dropped > Unhindered && passed+int(dropped) == 4*Unhindered
	})
	for range 20 {
		for passes() {
		}
		dropped := 1
		for !passes() {
			dropped++
		}
		if dropped > 50*Unhindered { // one of these takes 1 to 20 µs
			t.Errorf("%d packets in a row were dropped", dropped)
		}
	}
}

// TestKeys: while keys are replaced over and over, a packet with a tag of a key that is always among them passes. No
// packet is checked during more than one change: keys change by hand.
func TestKeys(t *testing.T) {
	stays := keys.NewGateKey()
	b := newBench(t, stays)
	_, frames := b.good(rand.New(rand.NewPCG(3, 4)))
	var checked atomic.Uint64
	var done atomic.Bool
	defer done.Store(true)
	several := false
	stop := lab.Repeat(func() {
		before := checked.Load()
		if several = !several; several {
			b.SetKeys(tagKeys(keys.NewGateKey(), stays))
		} else {
			b.SetKeys(tagKeys(stays))
		}
		for checked.Load() < before+2 && !done.Load() {
			runtime.Gosched()
		}
	})
	for range 20000 {
		if run(t, b.four, frames[stranger4]) != snap {
			t.Fatal("dropped while keys changed")
		}
		checked.Add(1)
	}
	done.Store(true)
	stop()
	b.SetKeys(tagKeys(keys.NewGateKey()))
	if b.passes(t, frames[stranger4]) {
		t.Error("a key that is no longer among them lets a packet through")
	}
	for at := range MaxKeys {
		list := make([]keys.GateKey, MaxKeys)
		for i := range list {
			list[i] = keys.NewGateKey()
		}
		list[at] = stays
		if b.SetKeys(tagKeys(list...)); !b.passes(t, frames[stranger4]) {
			t.Errorf("key %d of %d lets nothing through", at+1, MaxKeys)
		}
	}
	b.SetKeys(nil)
	empty := framed(datagram(stranger4, own4, knockPort, make([]byte, 200)))
	if b.passes(t, empty) || b.passes(t, frames[stranger4]) {
		t.Error("without a key a packet passes")
	}
}

// TestRightsOfTheUnit: the programs load with the capabilities of the systemd unit: without CAP_PERFMON the kernel is
// stricter.
func TestRightsOfTheUnit(t *testing.T) {
	newBench(t, keys.NewGateKey()) // where that works with all rights
	setpriv := lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	out, err := exec.Command(setpriv, "--bounding-set=-all,+net_admin,+net_raw,+bpf", "--", os.Args[0],
		"-test.run=^TestCopies$", "-test.v").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestCopies") {
		t.Errorf("got %v\n%s", err, out)
	}
}

// BenchmarkGate measures what the kernel spends on a packet.
func BenchmarkGate(b *testing.B) {
	one := newBench(b, keys.NewGateKey())
	two := newBench(b, keys.NewGateKey(), keys.NewGateKey())
	_, frames := one.good(rand.New(rand.NewPCG(5, 6)))
	forged := framed(datagram(stranger4, own4, knockPort, make([]byte, 200)))
	for name, c := range map[string]struct {
		program *ebpf.Program
		frame   []byte
	}{
		"socket/good":             {one.four, frames[stranger4]},
		"socket/good, IPv6":       {one.six, frames[stranger6]},
		"socket/forged":           {one.four, forged},
		"socket/forged, two keys": {two.four, forged},
		"socket/other port":       {one.four, framed(datagram(stranger4, own4, 53, make([]byte, 200)))},
		"xdp/good":                {one.xdp, frames[stranger4]},
		"xdp/forged":              {one.xdp, forged},
		"xdp/forged, two keys":    {two.xdp, forged},
		"xdp/other port":          {one.xdp, framed(datagram(stranger4, own4, 53, make([]byte, 200)))},
	} {
		b.Run(name, func(b *testing.B) {
			_, each, err := c.program.Benchmark(c.frame, max(b.N, 1), b.ResetTimer)
			lab.Must(b, err)
			b.ReportMetric(float64(each.Nanoseconds()), "ns/op")
		})
	}
}
