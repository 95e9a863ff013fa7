package server

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/policy"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// A witness sees each line that is logged.
type witness struct {
	slog.Handler
	see func(line string)
}

// Handle passes each line on.
func (w witness) Handle(_ context.Context, r slog.Record) error {
	w.see(r.Message)
	return nil
}

// Enabled reports true for every level.
func (w witness) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs keeps the witness.
func (w witness) WithAttrs([]slog.Attr) slog.Handler { return w }

// newSite is a bench with all files of a gateway. The test sees the dry run's log, which has a line for each change of
// the firewall.
func newSite(t testing.TB, see func(line string)) *bench {
	t.Helper()
	b := newBench(t)
	b.s.now = time.Now
	c := *b.s.config
	c.Dir = t.TempDir()
	c.Name, c.Address, c.State, c.Audit.File = "gw", "192.0.2.1", c.Dir, filepath.Join(c.Dir, "audit.jsonl")
	lab.Must(t, setup.Init(c, b.at))
	var err error
	b.s.config = lab.Value(config.Load(c.Dir))(t)
	gates := lab.Value(keys.ReadGate(filepath.Join(c.Dir, config.GateFile)))(t)
	b.s.ownGates, b.sender.Gate = spa.GatesOf(gates), gates.Current
	b.s.identity.Gates = b.s.ownGates
	b.s.dir = c.Dir
	b.s.root = lab.Value(os.OpenRoot(c.Dir))(t)
	t.Cleanup(func() { b.s.root.Close() })
	lab.Must(t, keys.WriteClient(b.s.clientsDir(), b.client, true))
	b.s.clients, _ = keys.LoadRegistry(b.s.clientsDir())
	b.s.firewall, err = firewall.New(setup.FirewallConfig(b.s.config, b.s.clients, time.Now),
		slog.New(witness{slog.DiscardHandler, see}))
	lab.Must(t, err)
	t.Cleanup(func() { b.s.firewall.Close() })
	lab.Must(t, b.s.firewall.Load(t.Context(), 0, time.Now()))
	b.s.policy = policy.New(b.s.config, b.s.firewall)
	return b
}

// knock delivers a packet of alice's, made now.
func (b *bench) knock() {
	b.s.process(context.Background(), arriving(b.seal(spa.Request{
		ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now(), For: 10 * time.Minute,
		Services: []service.Service{{Name: "ssh"}},
	})))
}

// write writes alice's file.
func (b *bench) write(change func(c *keys.Client)) {
	b.Helper()
	c := *b.client
	change(&c)
	lab.Must(b, keys.WriteClient(b.s.clientsDir(), &c, false))
}

// rewrite changes server.toml.
func (b *bench) rewrite(old, text string) {
	b.Helper()
	path := filepath.Join(b.s.dir, config.FileName)
	data := lab.Value(os.ReadFile(path))(b)
	if !strings.Contains(string(data), old) {
		b.Fatalf("there is no %s in\n%s", old, data)
	}
	lab.Must(b, os.WriteFile(path, []byte(strings.Replace(string(data), old, text, 1)), 0o640))
}

// changes lists everything that changes the firewall concurrently.
var changes = map[string]struct {
	files bool // it reads files, and nothing else may do so at the same time
	do    func(b *bench) error
}{
	"a packet": {false, func(b *bench) error { b.knock(); return nil }},
	"revoke of a client": {false, func(b *bench) error {
		_, err := b.s.revoke(b.Context(), control.Request{Client: "alice"})
		return err
	}},
	"revoke of an address": {false, func(b *bench) error {
		_, err := b.s.revoke(b.Context(), control.Request{Source: netip.MustParseAddr("192.0.2.2"), Cut: true})
		return err
	}},
	"a changed client": {true, func(b *bench) error {
		b.write(func(c *keys.Client) { c.Allow = []string{"tcp/22"} })
		return b.s.reloadClient(b.Context(), "alice")
	}},
	"a client that is shut out": {true, func(b *bench) error {
		b.s.shutOut(b.Context(), "alice", os.ErrNotExist)
		return nil
	}},
	"reload": {true, func(b *bench) error {
		b.rewrite(`ports = ["tcp/22"]`, `ports = ["tcp/2222"]`)
		_, err := b.s.reload(b.Context())
		return err
	}},
}

// TestChangesExcludeEachOther: while one change of the grants is applied, no packet is decided; while files that were
// read are applied, no others are.
func TestChangesExcludeEachOther(t *testing.T) {
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			var b *bench
			seen, doing := 0, false
			b = newSite(t, func(string) {
				if !doing {
					return
				}
				seen++
				if b.s.line.TryLock() {
					b.s.line.Unlock()
					t.Error("a packet could be decided meanwhile")
				}
				if change.files && b.s.reading.TryLock() {
					b.s.reading.Unlock()
					t.Error("other files could be taken over meanwhile")
				}
			})
			b.knock()
			doing = true
			if err := change.do(b); err != nil {
				t.Error(err)
			}
			if seen == 0 {
				t.Error("nothing was changed")
			}
		})
	}
}

// TestChangesBeside: packets, revocations, reloads, changed files, requests and watchers, all at once. It is for the
// race detector.
func TestChangesBeside(t *testing.T) {
	lab.NeedRoot(t)
	b := newSite(t, func(string) {})
	var err error
	b.s.sniffer, err = capture.Listen(captureConfig(b.s.config))
	lab.Must(t, err)
	t.Cleanup(func() { b.s.sniffer.Close() })
	times := [2]string{`max_for = "12m"`, `max_for = "10m"`}
	ask := func(r control.Request) func(int) {
		return func(int) { b.s.revoke(b.Context(), r) }
	}
	var wg sync.WaitGroup
	for _, do := range []func(n int){
		func(int) { b.knock() },
		ask(control.Request{Client: "alice", Cut: true}),
		ask(control.Request{Source: netip.MustParseAddr("192.0.2.2"), Cut: true}),
		func(n int) {
			b.rewrite(times[(n+1)%2], times[n%2])
			if _, err := b.s.reload(b.Context()); err != nil {
				t.Error(err)
			}
		},
		func(n int) {
			b.write(func(c *keys.Client) { c.MaxFor = time.Duration(1+n) * time.Minute })
			b.s.reloadClient(b.Context(), "alice")
		},
		func(int) { b.s.reloadAll(b.Context(), make(unsettled)) },
		func(int) { b.s.seen.granted("alice") },
		func(int) {
			c := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: time.Now(),
				Services: []service.Service{{Name: "ssh"}}}
			b.s.process(b.Context(), arriving(b.seal(c)))
		},
		func(int) { b.s.process(b.Context(), arriving(make([]byte, 200))) },
		func(int) {
			w, _ := b.s.feed.Join()
			defer b.s.feed.Leave(w)
			b.s.feed.Expect(b.s.firewall.Grants(time.Now()))
			b.s.feed.Missed(w)
		},
		func(int) { b.s.feed.TellEnded(time.Now().Add(time.Hour)) },
		func(int) {
			b.s.shutOut(b.Context(), "alice", os.ErrNotExist)
			b.s.reloadClient(b.Context(), "alice")
		},
		func(int) { b.s.status() },
		func(int) { b.s.seen.mayTell("alice", time.Now()) },
	} {
		wg.Go(func() {
			for n := range 30 {
				do(n)
			}
		})
	}
	wg.Wait()
}

// TestWaitsForTheLine: code that reads what a reload changes waits for the end of the reload.
func TestWaitsForTheLine(t *testing.T) {
	lab.NeedRoot(t)
	b := newSite(t, func(string) {})
	var err error
	b.s.sniffer, err = capture.Listen(captureConfig(b.s.config))
	lab.Must(t, err)
	t.Cleanup(func() { b.s.sniffer.Close() })
	for name, do := range map[string]func(){"status": func() { b.s.status() }, "ready": b.s.ready} {
		done := make(chan struct{})
		b.s.line.Lock()
		go func() {
			defer close(done)
			do()
		}()
		select {
		case <-done:
			t.Errorf("%s does not wait", name)
		case <-time.After(100 * time.Millisecond):
		}
		b.s.line.Unlock()
		<-done
	}
}

// TestOverflow: if the kernel's event queue overflowed, all files are read again: a revocation among the lost events
// still counts.
func TestOverflow(t *testing.T) {
	b := newSite(t, func(string) {})
	lab.Must(t, b.s.openWatcher())
	t.Cleanup(func() { b.s.watcher.Close() })
	b.knock()
	text := lab.Value(os.ReadFile("/proc/sys/fs/inotify/max_queued_events"))(t)
	room := lab.Value(strconv.Atoi(strings.TrimSpace(string(text))))(t)
	files := [2]string{filepath.Join(b.s.clientsDir(), "a~"), filepath.Join(b.s.clientsDir(), "b~")}
	for _, file := range files {
		lab.Must(t, os.WriteFile(file, nil, 0o600))
	}
	for n := range 2*room + 10000 { // identical events in a row would be merged
		lab.Must(t, os.Chmod(files[n%2], 0o600))
	}
	b.write(func(c *keys.Client) { c.Revoked = time.Now().UTC().Truncate(time.Second) })

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.s.watchClients(ctx) }()
	lab.Eventually(t, "what the revoked client holds to end",
		func() bool { return len(b.s.firewall.Grants(time.Now())) == 0 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
