package server

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// changing returns clients of a fleet twice: the second time with other terms and, with rekeyed, other keys.
func changing(n int, rekeyed bool) (first, second []*keys.Client) {
	for i := range n {
		c := fleetClient(fmt.Sprintf("client-%05d", i))
		c.MaxFor = time.Minute
		other := *c
		other.MaxFor = time.Hour
		if rekeyed {
			other.Key = keys.NewKey()
		}
		first, second = append(first, c), append(second, &other)
	}
	return first, second
}

// threadTime is how long this thread has run: what else the machine does counts for nothing.
func threadTime(b *testing.B) time.Duration {
	var at unix.Timespec
	lab.Must(b, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at))
	return time.Duration(at.Nano())
}

// BenchmarkTakeOver takes over bundles in which all of 10,000 clients have changed, and reports for how long the line
// is held at a time, of processor time.
func BenchmarkTakeOver(b *testing.B) {
	const clients = 10_000
	for name, rekeyed := range map[string]bool{"terms": false, "keys": true} {
		b.Run(name, func(b *testing.B) {
			p := newFleetSite(b, "")
			first, second := changing(clients, rekeyed)
			p.offer(p.bundle(1, first...))
			lab.Value(p.s.takeBundle(b.Context(), true))(b)
			turns := [][]*keys.Client{p.contents(first).Clients, p.contents(second).Clients}
			for _, c := range slices.Concat(turns...) {
				c.Fleet = true
			}
			var holds []time.Duration
			turn := 0
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for b.Loop() {
				turn++
				changes := lab.Value(p.s.clients.FleetChanges(turns[turn%2]))(b)
				if len(changes) != clients {
					b.Fatalf("%d clients have changed", len(changes))
				}
				for len(changes) > 0 {
					start := threadTime(b)
					changes, _ = p.s.followSome(b.Context(), changes, &control.Reloaded{})
					holds = append(holds, threadTime(b)-start)
				}
			}
			slices.Sort(holds)
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(ms(holds[len(holds)-1]), "ms-longest-hold")
			b.ReportMetric(ms(holds[len(holds)*99/100]), "ms-hold-p99")
		})
	}
}

// BenchmarkOffer reads, verifies, opens and takes over a bundle with 10,000 clients, all of them new.
func BenchmarkOffer(b *testing.B) {
	p := newFleetSite(b, "")
	first, second := changing(10_000, true)
	serial := int64(0)
	for b.Loop() {
		b.StopTimer()
		serial++
		p.offer(p.bundle(serial, [][]*keys.Client{first, second}[serial%2]...))
		b.StartTimer()
		lab.Value(p.s.takeBundle(b.Context(), true))(b)
	}
}
