package replay

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// known is a journal in a file that knows n keys.
func known(b *testing.B, keys int) *Journal {
	b.Helper()
	path := filepath.Join(b.TempDir(), "journal")
	c := Config{Window: 30 * time.Second, LiveNonces: maxLive}
	lab.Must(b, Create(path, c, start))
	j := lab.Value(Open(path, c, start))(b)
	b.Cleanup(func() { j.Close() })
	for n := range keys {
		now := after(time.Duration(n) * time.Millisecond)
		admit(b, j, packet(keyNumber(n), n, now), now, nil)
	}
	return j
}

// keyNumber spreads keys like random ids.
func keyNumber(n int) uint64 { return uint64(n) * 0x9e3779b97f4a7c15 }

func BenchmarkAdmit(b *testing.B) {
	for _, keys := range []int{1, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("fresh/keys=%d", keys), func(b *testing.B) { benchmarkFresh(b, keys) })
		b.Run(fmt.Sprintf("spent/keys=%d", keys), func(b *testing.B) { benchmarkSpent(b, keys) })
	}
}

// benchmarkFresh admits 100 packets per second by the journal's clock, so that as many are forgotten.
func benchmarkFresh(b *testing.B, keys int) {
	j := known(b, keys)
	now := after(time.Duration(keys) * time.Millisecond)
	b.ReportAllocs()
	n := keys
	for b.Loop() {
		n++
		now = now.Add(10 * time.Millisecond)
		_, err := j.Admit(packet(keyNumber(n*7919%keys), n, now), now)
		lab.Must(b, err)
	}
}

func benchmarkSpent(b *testing.B, keys int) {
	j := known(b, keys)
	now := after(time.Duration(keys) * time.Millisecond)
	spent := min(keys, 1000)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		of := keys - 1 - n%spent
		stamp := after(time.Duration(of) * time.Millisecond)
		if _, err := j.Admit(packet(keyNumber(of), of, stamp), now); err != ErrSpent {
			b.Fatal(err)
		}
	}
}

func BenchmarkSettle(b *testing.B) {
	j := known(b, 1)
	id := packet(0, 0, start).Request
	outcome := make([]byte, 60)
	b.ReportAllocs()
	for b.Loop() {
		lab.Must(b, j.Settle(keyNumber(0), id, outcome))
	}
}

// BenchmarkMemory reports the memory of a key of which only the floor is known.
func BenchmarkMemory(b *testing.B) {
	for range b.N {
		before := heap()
		j := known(b, 1)
		for n := range 100_000 {
			var name [16]byte
			binary.LittleEndian.PutUint64(name[:], keyNumber(n+1))
			i := lab.Value(j.memory.name(j.store, &j.memory.keys, name))(b)
			lab.Must(b, j.memory.keys.raise(j.store, i, int64(n+1)))
			j.memory.holdings.at(i)
		}
		b.ReportMetric(float64(heap()-before)/1e6, "MB/100k-keys")
		runtime.KeepAlive(j)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkOpen reads a journal with 60,000 live nonces.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "journal")
	c := Config{Window: 30 * time.Second}
	lab.Must(b, Create(path, c, start))
	j := lab.Value(Open(path, c, start))(b)
	for n := range 55_000 {
		admit(b, j, packet(keyNumber(n/100), n, start), start, nil)
	}
	j.Close()
	for b.Loop() {
		j, err := Open(path, c, start)
		if err != nil || j.Status().Live != 55_000 {
			b.Fatal(err)
		}
		j.Close()
	}
}
