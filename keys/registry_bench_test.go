package keys

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// writeClients writes n client files, like those of a server.
func writeClients(tb testing.TB, n int) string {
	tb.Helper()
	dir := tb.TempDir()
	for i := range n {
		c := &Client{Name: fmt.Sprintf("client-%06d", i), ID: ID(i + 1), Key: NewKey(), Allow: []string{"ssh"}}
		lab.Must(tb, os.WriteFile(filepath.Join(dir, c.Name+Suffix), c.text(), 0o600))
	}
	return dir
}

// BenchmarkLoadRegistry reports the time, and the memory that the process holds afterwards.
func BenchmarkLoadRegistry(b *testing.B) {
	dir := writeClients(b, 100_000)
	for b.Loop() {
		r, errs := LoadRegistry(dir)
		if len(errs) > 0 || r.Len() != 100_000 {
			b.Fatal(r.Len(), errs)
		}
		b.StopTimer()
		b.ReportMetric(resident(b)/1e6, "MB-resident")
		b.ReportMetric(float64(live())/1e6, "MB-live")
		runtime.KeepAlive(r)
		r = nil
		debug.FreeOSMemory()
		b.StartTimer()
	}
}

// BenchmarkMemory reports what a client costs in memory, beside others with the same services: also with a date of its
// own. They come as from a fleet's bundle.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		for name, expires := range map[string]time.Time{"": {}, " with an end": time.Unix(2e9, 0).UTC()} {
			b.Run(strconv.Itoa(n)+name, func(b *testing.B) {
				for b.Loop() {
					before := live()
					r := inMemory(b, n, expires)
					b.ReportMetric(float64(live()-before)/float64(n), "B/client")
					runtime.KeepAlive(r)
				}
			})
		}
	}
}

// inMemory returns a registry of n clients of a fleet. Each but those without an end has another.
func inMemory(tb testing.TB, n int, expires time.Time) *Registry {
	tb.Helper()
	r, parse := &Registry{}, ClientParser()
	key := NewKey()
	for i := range n {
		c := &Client{Name: fmt.Sprintf("client-%06d", i), ID: ID(i + 1), Key: key, Allow: []string{"ssh"}}
		if !expires.IsZero() {
			c.Expires = expires.Add(time.Duration(i) * time.Second)
		}
		after := lab.Value(parse(c.Name, c.text()))(tb)
		r.ApplyFleet([]Change{{After: after}})
	}
	return r
}

// live returns the bytes in use.
func live() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func resident(tb testing.TB) float64 {
	tb.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0 // not Linux
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb := lab.Value(strconv.Atoi(strings.Fields(rest)[0]))(tb)
	return float64(kb) * 1024
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 10_000, 1_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			r := registryOf(n)
			b.ReportAllocs()
			id := uint64(0)
			for b.Loop() {
				id += 0x9e3779b97f4a7c15 // not in the order of the ids
				if _, ok := r.Lookup(ID(id%uint64(n) + 1)); !ok {
					b.Fatal("missing")
				}
			}
		})
	}
}

func registryOf(n int) *Registry {
	r := &Registry{byID: make(map[ID]*record, n)}
	key, terms := NewKey(), &Client{Allow: []string{"ssh"}}
	for i := range n {
		r.byID[ID(i+1)] = &record{id: ID(i + 1), key: key, terms: terms}
	}
	return r
}

// BenchmarkReload measures one changed file beside 100,000 others.
func BenchmarkReload(b *testing.B) {
	r, errs := LoadRegistry(writeClients(b, 100_000))
	if len(errs) > 0 {
		b.Fatal(errs)
	}
	for b.Loop() {
		_, err := r.Reload("client-012345")
		lab.Must(b, err)
	}
}
