package firewall

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// dryGuard returns a loaded firewall that enforces nothing, with as many live grants.
func dryGuard(tb testing.TB, live int) *Firewall {
	tb.Helper()
	f := lab.Value(New(Config{Backend: BackendDryRun, Guarded: []service.Ports{ports("tcp/22")}},
		slog.New(slog.DiscardHandler)))(tb)
	tb.Cleanup(func() { f.Close() })
	lab.Must(tb, f.Load(tb.Context(), 0, time.Now()))
	for i := range live {
		lab.Must(tb, f.Grant(tb.Context(), []Grant{listed(i)}, time.Now()))
	}
	return f
}

// listed returns a grant of one of 1,000 clients.
func listed(i int) Grant {
	g := benchGrant(i)
	g.Client = fmt.Sprintf("client-%03d", i%1000)
	return g
}

// TestListedWhileGranting: a list has every grant that lives all the time, once, whatever is granted and revoked
// meanwhile.
func TestListedWhileGranting(t *testing.T) {
	const stay = 3 * atOnce
	f := dryGuard(t, stay)
	var beside sync.WaitGroup
	stop := make(chan struct{})
	defer beside.Wait()
	defer close(stop)
	beside.Go(func() {
		for i := stay; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			g := listed(i)
			g.Client = "comes-and-goes"
			err := f.Grant(t.Context(), []Grant{g}, time.Now())
			if err == nil && i%3 == 0 {
				_, err = f.Revoke(t.Context(), Match{Client: g.Client}, time.Now())
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 50 {
		seen := make(map[string]int)
		gs := f.Grants(time.Now())
		for _, g := range gs {
			if g.Client != "comes-and-goes" {
				seen[g.Client+g.Source.String()]++
			}
		}
		if len(seen) != stay || slices.ContainsFunc(gs, func(g Grant) bool { return seen[g.Client+g.Source.String()] > 1 }) {
			t.Fatalf("%d of %d grants are in the list, or one is twice", len(seen), stay)
		}
		if !slices.IsSortedFunc(gs, compareGrants) {
			t.Fatal("the list is not sorted")
		}
		if n := f.Count(time.Now()); n < stay {
			t.Fatalf("counted %d of %d grants", n, stay)
		}
	}
}

// BenchmarkList measures a list and a count of 100,000 live grants, and how long a grant beside them waits.
func BenchmarkList(b *testing.B) {
	f := dryGuard(b, 100_000)
	for name, list := range map[string]func(){
		"grants": func() { f.Grants(time.Now()) },
		"count":  func() { f.Count(time.Now()) },
	} {
		b.Run(name, func(b *testing.B) {
			var beside sync.WaitGroup
			var took []time.Duration
			stop := make(chan struct{})
			beside.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					start := time.Now()
					lab.Must(b, f.Grant(b.Context(), []Grant{listed(1)}, start))
					took = append(took, time.Since(start))
				}
			})
			for b.Loop() {
				list()
			}
			close(stop)
			beside.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "grant-p99-us")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "grant-max-us")
		})
	}
}
