package firewall

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// BenchmarkWidths measures a datagram without a grant, which every rule looks at, where grants let in networks of so
// many widths.
func BenchmarkWidths(b *testing.B) {
	for _, widths := range []int{0, 1, 4, 16} {
		b.Run(fmt.Sprint(widths), func(b *testing.B) {
			client, gateway := lab.Pair(b)
			var f *Firewall
			lab.Must(b, gateway.Do(func() (err error) {
				if f, err = New(Config{Guarded: []service.Ports{ports("udp/5000")}, State: b.TempDir()},
					slog.New(slog.DiscardHandler)); err != nil {
					return err
				}
				return f.Load(b.Context(), 0, time.Now())
			}))
			defer f.Close()
			for i := range widths {
				g := netGrant("alice", netip.PrefixFrom(netip.MustParseAddr("198.51.0.0"), 16+i).Masked().String(), long)
				g.Ports = []service.Ports{ports("udp/5000")}
				lab.Must(b, f.Grant(b.Context(), []Grant{g}, time.Now()))
			}
			var c net.Conn
			lab.Must(b, client.Do(func() (err error) { c, err = net.Dial("udp", "192.0.2.1:5000"); return err }))
			defer c.Close()
			for b.Loop() {
				if _, err := c.Write([]byte("hello")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFirstOfWidth measures a grant for a network of a width that no other grant has.
func BenchmarkFirstOfWidth(b *testing.B) {
	for _, backend := range []string{BackendNftables, BackendIptables} {
		for _, live := range []int{1, 20000} {
			b.Run(fmt.Sprintf("%s/live=%d", backend, live), func(b *testing.B) {
				f := benched(b, live, func(c *Config) { c.Backend, c.Networks = backend, true })
				var took []time.Duration
				for b.Loop() {
					b.StopTimer()
					lab.Must(b, f.Load(b.Context(), 0, time.Now()))
					b.StartTimer()
					g, start := netGrant("alice", "198.51.100.0/24", long), time.Now()
					lab.Must(b, f.Grant(b.Context(), []Grant{g}, start))
					took = append(took, time.Since(start))
					lab.Value(f.Revoke(b.Context(), Match{Client: "alice"}, time.Now()))(b)
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
				b.ReportMetric(float64(took[len(took)-1])/1e6, "most-ms")
			})
		}
	}
}
