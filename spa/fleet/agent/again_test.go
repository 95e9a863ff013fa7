package agent

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// follow runs an agent until the test ends.
func follow(t testing.TB, source Source, to string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { (&Agent{Source: source, Gateway: "web", To: to, Log: discard()}).Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// TestTakenAgain: a bundle that could not be put in place is put there at the next look, though it has not changed,
// and long before everything is read anew.
func TestTakenAgain(t *testing.T) {
	text := bundles(t)("web", 1)
	from := filepath.Join(t.TempDir(), "web.bundle")
	lab.Must(t, os.WriteFile(from, text, 0o644))
	site := new(website)
	site.set(text, `"1"`, 0)
	server := httptest.NewTLSServer(site)
	defer server.Close()
	const every = 2 * lab.Patience / anew
	for name, source := range map[string]Source{
		"file": File{from, every}, "web": Web{server.URL, server.Client(), every},
	} {
		to := filepath.Join(t.TempDir(), "here")
		lab.Must(t, os.Mkdir(to, 0o755)) // which no bundle can replace
		looks := &looked{Source: source}
		follow(t, looks, to)
		lab.Eventually(t, name+": it was refused", func() bool { return looks.refused() > 0 })
		lab.Must(t, os.Remove(to))
		arrives(t, to, text)
	}
}

// looked counts how often what a source has could not be taken.
type looked struct {
	Source
	mu sync.Mutex
	n  int
}

func (l *looked) refused() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *looked) Follow(ctx context.Context, take func([]byte) error, trouble func(error)) {
	l.Source.Follow(ctx, func(text []byte) error {
		err := take(text)
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil {
			l.n++
		}
		return err
	}, trouble)
}

// TestLyingTag: a web server that was taken over served another bundle with the tag of the good one. Once it serves the
// good one again, an agent gets that, though the server says that it is the version that the agent has.
func TestLyingTag(t *testing.T) {
	forged, good := bundles(t)("web", 9), bundles(t)("web", 1)
	site := new(website)
	site.set(forged, `"good"`, 0)
	server := httptest.NewTLSServer(site)
	defer server.Close()
	to := filepath.Join(t.TempDir(), "here")
	follow(t, Web{server.URL, server.Client(), time.Millisecond}, to)
	arrives(t, to, forged)
	site.set(good, `"good"`, 0)
	arrives(t, to, good)
}
