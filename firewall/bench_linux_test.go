package firewall

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// benched is a guard with a number of live grants.
func benched(b *testing.B, live int) *Firewall {
	b.Helper()
	host := lab.New(b, "gateway")[0]
	var f *Firewall
	err := host.Do(func() (err error) {
		c := Config{Guarded: []service.Ports{ports("tcp/22")}, State: b.TempDir()}
		if f, err = New(c, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		return f.Load(b.Context(), 0, time.Now())
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	for i := range live {
		if err := f.Grant(b.Context(), []Grant{benchGrant(1<<20 + i)}, time.Now()); err != nil {
			b.Fatal(err)
		}
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
					if err := f.Grant(b.Context(), []Grant{g}, start); err != nil {
						b.Fatal(err)
					}
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
		if err := f.Load(b.Context(), 0, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}
