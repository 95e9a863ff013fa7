package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// benched returns a guard with a number of live grants.
func benched(b *testing.B, live int, change ...func(*Config)) *Firewall {
	b.Helper()
	host := lab.New(b, "gateway")[0]
	var f *Firewall
	lab.Must(b, host.Do(func() (err error) {
		c := Config{Guarded: []service.Ports{ports("tcp/22")}, State: b.TempDir()}
		for _, do := range change {
			do(&c)
		}
		if f, err = New(c, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		return f.Load(b.Context(), 0, time.Now())
	}))
	b.Cleanup(func() { f.Close() })
	for i := range live {
		lab.Must(b, f.Grant(b.Context(), []Grant{benchGrant(1<<20 + i)}, time.Now()))
	}
	return f
}

func benchGrant(i int) Grant {
	return Grant{
		Client: "c" + fmt.Sprint(i%1000), Service: "ssh",
		Source: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
		Ports:  []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
		Until:  time.Now().Add(time.Hour),
	}
}

func BenchmarkGrant(b *testing.B) {
	for _, live := range []int{1, 20000} {
		for _, fresh := range []bool{true, false} {
			name := map[bool]string{true: "fresh", false: "refresh"}[fresh]
			b.Run(fmt.Sprintf("%s/live=%d", name, live), func(b *testing.B) {
				f := benched(b, live)
				var took []time.Duration
				for i := 0; b.Loop(); i++ {
					g := benchGrant(1 << 20)
					if fresh {
						g = benchGrant(i)
						g.Until = time.Now().Add(2 * time.Second)
					}
					start := time.Now()
					lab.Must(b, f.Grant(b.Context(), []Grant{g}, start))
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
			})
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	f := benched(b, 20000)
	for b.Loop() {
		lab.Must(b, f.Load(b.Context(), 0, time.Now()))
	}
}

// BenchmarkWayBack measures how long a stranger's datagrams arrive after another tool has flushed the rule set, on a
// kernel that does not protect the table: from the flush to the last datagram.
func BenchmarkWayBack(b *testing.B) {
	stranger, gateway := lab.Pair(b)
	var f *Firewall
	var c *net.UDPConn
	var err error
	lab.Must(b, gateway.Do(func() error {
		if f, err = New(Config{Guarded: []service.Ports{ports("udp/5000")}, Persist: PersistFile, State: b.TempDir()},
			slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		if c, err = net.ListenUDP("udp", &net.UDPAddr{Port: 5000}); err != nil {
			return err
		}
		return f.Load(b.Context(), 0, time.Now())
	}))
	ctx, stop := context.WithCancel(b.Context())
	var beside sync.WaitGroup
	beside.Go(func() { f.Watch(ctx) })
	var last atomic.Int64 // when a datagram last arrived
	beside.Go(func() {
		for b := make([]byte, 9); ; last.Store(time.Now().UnixNano()) {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	})
	beside.Go(func() { flood(ctx, stranger) })
	var took []time.Duration
	for b.Loop() {
		time.Sleep(200 * time.Millisecond)
		start := time.Now()
		lab.Must(b, gateway.Do(func() error {
			n, err := nft.New()
			if err != nil {
				return err
			}
			n.FlushRuleset()
			start = time.Now()
			return n.Flush()
		}))
		time.Sleep(300 * time.Millisecond)
		took = append(took, max(0, time.Unix(0, last.Load()).Sub(start)))
	}
	stop()
	c.Close()
	beside.Wait()
	f.Close()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*9/10])/1e6, "p90-ms")
}

// flood sends a datagram every 50 microseconds.
func flood(ctx context.Context, from *lab.Host) {
	_ = from.Do(func() error {
		c, err := net.Dial("udp", "192.0.2.1:5000")
		if err != nil {
			return err
		}
		defer c.Close()
		for ctx.Err() == nil {
			c.Write([]byte("x")) // continue after an ICMP error
			time.Sleep(50 * time.Microsecond)
		}
		return nil
	})
}
