package server

import (
	"context"
	"testing"

	"sallyport/spa/capture"
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
			p := b.refused(name)
			if n := testing.AllocsPerRun(100, func() { b.s.process(context.Background(), p) }); n != 0 {
				t.Errorf("%v allocations a packet", n)
			}
		})
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
