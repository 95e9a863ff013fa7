package keys

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestMemoryOfAClient: each client takes the memory of its name, its keys and its dates. What clients have in common is
// in memory once, whether their files are read together, one at a time, or come in a bundle.
func TestMemoryOfAClient(t *testing.T) {
	const n, most = 3000, 400 // with terms of its own a client takes more than 500 bytes
	list := make([]*Client, n)
	dir := t.TempDir()
	for i := range list {
		c := *fullClient()
		c.Name, c.ID, c.Key, c.Previous = fmt.Sprintf("client-%06d", i), ID(i+1), NewKey(), nil
		c.Expires = time.Unix(2e9+int64(i), 0).UTC()
		lab.Must(t, os.WriteFile(filepath.Join(dir, c.Name+Suffix), c.text(), 0o600))
		list[i] = &c
	}
	for name, hold := range map[string]func() *Registry{
		"together": func() *Registry { return load(t, dir) },
		"one at a time": func() *Registry {
			r := load(t, t.TempDir())
			r.folder = load(t, dir).folder
			for _, c := range list {
				lab.Value(r.Reload(c.Name))(t)
			}
			return r
		},
		"in a bundle": func() *Registry {
			r, parse := &Registry{}, ClientParser()
			for _, c := range list {
				r.ApplyFleet([]Change{{After: lab.Value(parse(c.Name, c.text()))(t)}})
			}
			return r
		},
	} {
		before := live()
		r := hold()
		if each := (live() - before) / n; each > most {
			t.Errorf("%s: a client takes %d bytes, want at most %d", name, each, most)
		}
		for _, want := range list {
			if got, ok := r.Lookup(want.ID); !ok || !sameClient(&got.Client, want) {
				t.Fatalf("%s: got %+v, want %+v", name, got, want)
			}
		}
		runtime.KeepAlive(r)
	}
}

// TestTermsOfTheirOwn: clients with different terms keep them, however many there are.
func TestTermsOfTheirOwn(t *testing.T) {
	var p pool
	for i := range 3 * maxPool {
		c := client("alice", 1)
		c.Allow = []string{fmt.Sprintf("s%d", i%(maxPool+10))}
		r := p.record(c)
		if got := r.whole(); !sameClient(got, c) {
			t.Fatalf("got %+v, want %+v", got, c)
		}
		if len(p.known) > maxPool {
			t.Fatalf("the pool keeps %d", len(p.known))
		}
	}
	// An empty list reads as none, and is another value: a bundle would change such a client for ever.
	for _, c := range []*Client{{}, {Allow: []string{}}, {Deny: fullClient().Deny}, {Deny: fullClient().Deny[:0]}} {
		if got := p.record(c).whole(); !got.Same(c) {
			t.Errorf("got %+v, want %+v", got, c)
		}
	}
}
