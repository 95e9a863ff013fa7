package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"sallyport/keys"
	"sallyport/spa/audit"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
)

// TestChangeOfAFile: a changed file is read again, whatever the change, and the log reports what happened to the
// client. Other files are ignored.
func TestChangeOfAFile(t *testing.T) {
	b, said := newSite(t, func(string) {}), &lines{}
	b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
	path := filepath.Join(b.s.clientsDir(), "alice.toml")
	for _, test := range []struct {
		name   string
		change func(c *keys.Client)
		event  string
		said   []string
		known  bool
	}{
		{"changed", func(c *keys.Client) { c.Allow = []string{"web"} }, path, []string{"client changed"}, true},
		{"another's copy", func(c *keys.Client) { c.Allow = []string{"ssh"} }, path + "~", nil, true},
		{"without its suffix", func(c *keys.Client) { c.Allow = []string{"web"} }, strings.TrimSuffix(path, keys.Suffix), nil,
			true},
		{"a hidden file", func(*keys.Client) {}, filepath.Join(b.s.clientsDir(), ".alice.toml"), nil, true},
		{"the directory's mode", func(*keys.Client) {}, b.s.clientsDir(), nil, true},
		{"revoked", func(c *keys.Client) { c.Revoked = time.Now().UTC().Truncate(time.Second) }, path,
			[]string{"client revoked"}, true},
		{"removed", nil, path, []string{"client removed"}, false},
		{"removed again", nil, path, nil, false},
		{"added", func(*keys.Client) {}, path, []string{"client added"}, true},
	} {
		said.list = nil
		os.Remove(path)
		if test.change != nil {
			c := *b.client
			test.change(&c)
			lab.Must(t, keys.WriteClient(b.s.clientsDir(), &c, true))
		}
		waiting := make(unsettled)
		if err := b.s.reloadFile(t.Context(), fsnotify.Event{Name: test.event, Op: fsnotify.Chmod}, waiting); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		waiting.over()
		b.s.settle(t.Context(), waiting)
		if _, known := b.s.clients.Client("alice"); known != test.known || !slices.Equal(said.list, test.said) {
			t.Errorf("%s: the client is known: %v, and the log says %q, want %v and %q", test.name, known,
				said.list, test.known, test.said)
		}
	}
	for _, op := range []fsnotify.Op{fsnotify.Remove, fsnotify.Rename} {
		if err := b.s.reloadFile(t.Context(), fsnotify.Event{Name: b.s.clientsDir(), Op: op}, nil); err == nil {
			t.Errorf("%v of the directory: the server keeps running", op)
		}
	}
}

// TestBadFile: if a client's file turns bad, the client keeps its terms for a moment and is then shut out: its grants
// end, its knocks are refused, and the log reports it.
func TestBadFile(t *testing.T) {
	b, said := newSite(t, func(string) {}), &lines{}
	b.knock()
	b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
	lab.Must(t, os.WriteFile(filepath.Join(b.s.clientsDir(), "alice.toml"), []byte("x"), 0o600))
	waiting := make(unsettled)
	b.s.reloadAll(t.Context(), waiting)
	b.s.settle(t.Context(), waiting)
	if held := b.s.firewall.Grants(time.Now()); len(held) != 1 || len(said.list) > 0 {
		t.Errorf("at once: held %v, and the log says %q", held, said.list)
	}
	waiting.over()
	b.s.settle(t.Context(), waiting)
	if held := b.s.firewall.Grants(time.Now()); len(held) != 0 || !said.has(shutOutFor) || !said.has("grant ended") {
		t.Errorf("held: %v, and the log says %q", held, said.list)
	}
	b.at = time.Now()
	if b.arrive(b.packet(0)); b.event.Verdict != audit.Unopened {
		t.Errorf("a knock: %v, %v", b.event.Verdict, b.event.Err)
	}
	if out := b.s.leftOut(); len(out) != 1 || out[0].Client != "alice" {
		t.Errorf("left out: %v", out)
	}
	for change, test := range map[string]func() error{
		"mended":  func() error { return keys.WriteClient(b.s.clientsDir(), b.client, true) },
		"removed": func() error { return nil },
	} {
		os.Remove(filepath.Join(b.s.clientsDir(), "alice.toml"))
		b.s.shutOut(t.Context(), "alice", errors.New("bad"))
		said.list = nil
		lab.Must(t, test())
		b.s.settle(t.Context(), unsettled{"alice": {}})
		if !slices.Equal(said.list, []string{"client " + change}) || len(b.s.leftOut()) != 0 {
			t.Errorf("%s: the log says %q, and left out are %v", change, said.list, b.s.leftOut())
		}
	}
}

// TestWatchingSleeps: a server whose client files do not change does nothing, even after one was bad or missing.
func TestWatchingSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newLine(t)
		s.dir = s.config.Dir
		s.watcher = &fsnotify.Watcher{Events: make(chan fsnotify.Event), Errors: make(chan error)}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.watchClients(ctx) }()
		s.watcher.Events <- fsnotify.Event{Name: filepath.Join(s.clientsDir(), "nobody.toml"), Op: fsnotify.Remove}
		time.Sleep(time.Hour) // passes while all goroutines sleep
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestWatchingEnds: without the kernel's events the server would miss a revocation, so it ends, with an error unless it
// was stopped.
func TestWatchingEnds(t *testing.T) {
	failure := errors.New("the kernel's")
	for name, test := range map[string]struct {
		end  func(w *fsnotify.Watcher)
		want error
	}{
		"no more events": {func(w *fsnotify.Watcher) { close(w.Events) }, nil},
		"no more errors": {func(w *fsnotify.Watcher) { close(w.Errors) }, nil},
		"an error":       {func(w *fsnotify.Watcher) { w.Errors <- failure }, failure},
	} {
		s, _ := newLine(t)
		s.dir = s.config.Dir
		s.watcher = &fsnotify.Watcher{Events: make(chan fsnotify.Event), Errors: make(chan error, 1)}
		test.end(s.watcher)
		if err := s.watchClients(t.Context()); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

// TestLeftOut: ignored clients are listed in order, and no more of them than fit into an answer.
func TestLeftOut(t *testing.T) {
	s, _ := newLine(t)
	for n := range mostSeen + 1 {
		s.clients.Shut(fmt.Sprintf("c%d", n), errors.New("bad"))
	}
	out := s.leftOut()
	if len(out) != mostSeen || !slices.IsSortedFunc(out, func(a, b control.LeftOut) int {
		return strings.Compare(a.Client,
			b.Client)
	}) {
		t.Errorf("%d are listed, the first %+v", len(out), out[:3])
	}
}

// over makes the waiting time of all of them pass.
func (u unsettled) over() {
	for name := range u {
		u[name] = time.Time{}
	}
}

// TestEndThatCannotBe: if the firewall fails to end a grant, the log reports it, and no watcher sees an end.
func TestEndThatCannotBe(t *testing.T) {
	b, said := newBench(t), &lines{}
	b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
	b.arrive(b.packet(0))
	w, _ := b.s.feed.Join()
	defer b.s.feed.Leave(w)
	b.s.firewall = idle(b)
	b.s.journal.Close()
	b.enrol(func(c *keys.Client) { c.Allow = []string{"web"} })
	if ended := b.s.endUnkept(t.Context(), feed.GrantsOf(b.event), nil, b.at); len(ended) != 0 || len(w.Lines) != 0 {
		t.Errorf("%v are reported as ended, and watchers got %d lines", ended, len(w.Lines))
	}
	for _, line := range []string{"could not end a grant", "may still open a service"} {
		if !said.has(line) {
			t.Errorf("the log has no line %q: %q", line, said.list)
		}
	}
}

// TestReadable: a server that cannot read the client files after dropping its privileges reports that and the command
// to hand them over, before it reads a packet: otherwise it would miss a revocation.
func TestReadable(t *testing.T) {
	lab.NeedRoot(t)
	for _, mode := range []fs.FileMode{0o700, 0o755} {
		for _, uid := range []int{4321, sandbox.Unnamed} {
			b := newSite(t, func(string) {})
			b.s.sandbox = sandbox.State{User: "spa", UID: uid}
			lab.Must(t, os.Chmod(b.s.clientsDir(), mode))
			err := lab.AsUser(t, uid, b.s.readable)
			if (err != nil) != (mode == 0o700) {
				t.Errorf("mode %o, uid %d: %v", mode, uid, err)
			}
			if err != nil &&
				(!strings.Contains(err.Error(), "chgrp -R spa") ||
					strings.Contains(err.Error(), "useradd") != (uid == sandbox.Unnamed)) {
				t.Errorf("uid %d: got %v, want how to hand the files over", uid, err)
			}
		}
	}
}
