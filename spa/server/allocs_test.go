package server

import (
	"context"
	"encoding/binary"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/lab"
)

// refused returns a packet that is refused for a reason, and has been once.
func (b *bench) refused(name string) capture.Packet {
	b.Helper()
	p := refusals[name].make(b)
	b.s.process(context.Background(), p) // the first of its kind gets a counter
	return p
}

// TestRefusalsDoNotAllocate: a packet that is refused without an answer leaves no garbage, whatever the reason: a flood
// cannot make the collector run.
func TestRefusalsDoNotAllocate(t *testing.T) {
	for name := range refusals {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.noGarbage(b.refused(name))
		})
	}
	files := lab.Value(filepath.Glob("../testdata/vectors/malformed-*.txt"))(t)
	if len(files) < 10 {
		t.Fatalf("found %d vectors", len(files))
	}
	for _, file := range files {
		name, _ := strings.CutSuffix(filepath.Base(file), ".txt")
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.noGarbage(b.malformed(strings.TrimPrefix(name, "malformed-")))
		})
	}
}

// TestCopiesOfRefusedNamesDoNotAllocate: a copy of a packet that names services which its client may not open.
func TestCopiesOfRefusedNamesDoNotAllocate(t *testing.T) {
	b := newBench(t)
	r := b.request(spa.TypeOpen, "other")
	r.Services = append(r.Services, service.Service{Name: "ssh"}, service.Service{Name: "third"})
	p := arriving(b.seal(r))
	if b.arrive(p); b.event.Verdict != audit.Denied {
		t.Fatalf("got %v, want that it is denied", b.event.Verdict)
	}
	b.noGarbage(p)
}

// noGarbage takes a packet many times.
func (b *bench) noGarbage(p capture.Packet) {
	b.Helper()
	if n := testing.AllocsPerRun(100, func() { b.s.process(context.Background(), p) }); n != 0 {
		b.Errorf("%v allocations a packet", n)
	}
}

// BenchmarkRefusals measures the line for each refusal without an answer.
func BenchmarkRefusals(b *testing.B) {
	for name := range refusals {
		b.Run(name, func(b *testing.B) {
			line := newBench(b)
			p := line.refused(name)
			b.ReportAllocs()
			for b.Loop() {
				line.s.process(context.Background(), p)
			}
		})
	}
}

// BenchmarkFlood reports by how much the memory in use has grown after a flood of each kind of packet, each from
// another address, with other bytes where its sender can choose them: -benchtime 10000000x is ten million of each.
func BenchmarkFlood(b *testing.B) {
	for name := range refusals {
		b.Run(name, func(b *testing.B) {
			line := newBench(b)
			p := line.refused(name)
			before := inUse()
			for i := range b.N {
				line.s.process(context.Background(), forged(p, name, i))
			}
			b.ReportMetric(float64(inUse()-before)/1024, "KiB-grown")
		})
	}
}

// forged returns the i-th packet of a flood of a kind.
func forged(p capture.Packet, name string, i int) capture.Packet {
	switch name {
	case "spa.ErrGate", "spa.ErrLength":
		binary.LittleEndian.PutUint64(p.Data, uint64(i))
	case "spa.ErrMAC":
		binary.LittleEndian.PutUint64(p.Data[len(p.Data)-8:], uint64(i))
	}
	if name != "replay.ErrSpent" && name != "policy.ErrLink" {
		from := netip.AddrFrom4([4]byte{192, 0, 2, byte(3 + i%250)})
		p.From = netip.AddrPortFrom(from, uint16(i))
	}
	return p
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
