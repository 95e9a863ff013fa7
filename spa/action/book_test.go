package action

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// door is a book with a firewall that holds what the test says, and programs that write what they do to a log.
type door struct {
	*testing.T
	dir  string // of the log
	file string // of the book
	c    *config.Config
	book *Book
	stop func()

	mu     sync.Mutex
	held   []Grant
	events []string
}

// newDoor returns a door whose services run these scripts, with "log WORD" to write into the log, and
// "hold" to wait for release.
func newDoor(t *testing.T, begin, end string) *door {
	d := &door{T: t, dir: t.TempDir()}
	script := func(text string) []string {
		if text == "" {
			return nil
		}
		return []string{"/bin/sh", "-c", "log() { echo $1 $SPA_CLIENT $SPA_GRANT >>" + d.dir + "/log; }; " +
			"hold() { while ! [ -e " + d.dir + "/go ]; do sleep 0.02; done; }; " + text}
	}
	d.file = filepath.Join(d.dir, config.ActionsFile)
	a := config.Action{Run: script(begin), After: script(end), User: "root", Timeout: time.Minute}
	d.c = gateway(t, map[string]config.Action{"a": a, "b": a, "c": {Run: []string{"/nowhere"}, User: "root",
		Timeout: time.Minute}})
	d.open()
	t.Cleanup(func() { d.stop(); d.book.Close() })
	return d
}

func (d *door) release() {
	d.Helper()
	lab.Must(d, os.WriteFile(filepath.Join(d.dir, "go"), nil, 0o600))
}

// open opens the book as a server does at its start. An earlier one is left as if the server had been killed.
func (d *door) open() {
	d.Helper()
	if d.book != nil {
		d.stop()
		lab.Must(d, d.book.Close())
	}
	f := lab.Value(OpenFile(d.file))(d)
	d.book = lab.Value(Open(d.c, Options{File: f, Held: d.holds, Report: d.report, Now: time.Now}))(d)
	lab.Must(d, d.book.Recover())
	ctx, cancel := context.WithCancel(d.Context())
	over := make(chan struct{})
	go func() { d.book.Run(ctx); close(over) }()
	d.stop = func() { cancel(); <-over }
}

func (d *door) holds(client string) []Grant {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.held), func(g Grant) bool { return g.Client != client })
}

func (d *door) report(j Job, e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, fmt.Sprint(j.Hook, " ", e.What))
}

func grantTo(client, service string) Grant {
	return Grant{client, service, netip.MustParseAddr("192.0.2.2"), time.Now().Add(time.Hour)}
}

// give grants, as the line does.
func (d *door) give(gs ...Grant) error {
	r, err := d.book.Reserve(gs)
	if err != nil {
		return err
	}
	d.mu.Lock()
	for _, g := range gs {
		if !slices.ContainsFunc(d.held, func(h Grant) bool { return h.key() == g.key() }) {
			d.held = append(d.held, g)
		}
	}
	d.mu.Unlock()
	d.book.Commit(r)
	return nil
}

// take ends grants, without a word to the book.
func (d *door) take(gs ...Grant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = slices.DeleteFunc(d.held, func(h Grant) bool {
		return slices.ContainsFunc(gs, func(g Grant) bool { return g.key() == h.key() })
	})
}

func (d *door) log() []string {
	text, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
}

// logged waits until the log has these words.
func (d *door) logged(want ...string) (lines []string) {
	d.Helper()
	lab.Eventually(d, fmt.Sprint(want), func() bool { lines = d.log(); return len(lines) >= len(want) })
	for i, line := range lines {
		if len(lines) != len(want) || !strings.HasPrefix(line, want[i]+" ") {
			d.Fatalf("got %q, want %q", lines, want)
		}
	}
	return lines
}

// quiet waits until the book has nothing to do.
func (d *door) quiet() {
	d.Helper()
	lab.Eventually(d, "an end of all programs", func() bool {
		s := d.book.Status()
		return s.Running == 0 && s.Waiting == 0
	})
}

// TestOnce: the programs of a grant run once each, however often it is renewed and the server killed, and know that
// they belong together.
func TestOnce(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "log begin", "log end")
	g := grantTo("alice", "a")
	for range 10 {
		lab.Must(t, d.give(g))
	}
	d.logged("begin alice")
	d.quiet()
	d.open()
	lab.Must(t, d.give(g))
	d.quiet()
	d.take(g)
	d.book.Left()
	d.quiet()
	lines := d.logged("begin alice", "end alice")
	if first, last := strings.Fields(lines[0]), strings.Fields(lines[1]); first[2] != last[2] || first[2] == "" {
		t.Errorf("got %q", lines)
	}
	lab.Must(t, d.give(g))
	lines = d.logged("begin alice", "end alice", "begin alice")
	if strings.Fields(lines[0])[2] == strings.Fields(lines[2])[2] {
		t.Errorf("two grants have one number: %q", lines)
	}
	d.quiet()
	d.mu.Lock()
	defer d.mu.Unlock()
	want := []string{"run started", "run ended", "run_after started", "run_after ended"}
	if !slices.Equal(d.events[:4], want) {
		t.Errorf("got %q", d.events)
	}
}

// TestEndAfterRestart: the program of the end runs after a restart, if the grant ended meanwhile, and only once.
func TestEndAfterRestart(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "log begin", "log end")
	g := grantTo("alice", "a")
	lab.Must(t, d.give(g))
	d.logged("begin alice")
	d.quiet()
	d.take(g)
	d.open()
	d.logged("begin alice", "end alice")
	d.quiet()
	d.open()
	d.quiet()
	d.logged("begin alice", "end alice")
}

// TestPowerLoss: when a program has started, a loss of power does not make the book forget the end of its grant, with
// or without a program at the begin.
func TestPowerLoss(t *testing.T) {
	for _, begin := range []string{"log begin", ""} {
		disk := lab.NewDisk(t, "4M")
		d := newDoor(t, begin, "log end")
		d.file = filepath.Join(disk.Dir, config.ActionsFile)
		d.open()
		g := grantTo("alice", "a")
		lab.Must(t, d.give(g))
		want := []string{"end alice"}
		if begin != "" {
			want = []string{"begin alice", "end alice"}
			d.logged(want[0])
		}
		d.quiet()
		lab.Eventually(t, "the disk to have it", func() bool {
			d.book.mu.Lock()
			defer d.book.mu.Unlock()
			return d.book.last(g.key()).synced
		})
		d.take(g)
		d.stop()
		lab.Must(t, d.book.Close())
		d.book = nil
		disk.CutPower(t)
		d.open()
		d.logged(want...)
	}
}

// TestKilledBetween: if the server was killed before anything was started, or before it could record that, the first
// program runs at the next start while the grant lasts, and the last one if it does not.
func TestKilledBetween(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{true, false} {
		d := newDoor(t, "log begin", "log end")
		d.stop() // nothing is started
		g := grantTo("alice", "a")
		lab.Must(t, d.give(g))
		if !live {
			d.take(g)
		}
		d.open()
		if live {
			d.logged("begin alice")
		} else {
			d.logged("end alice")
		}
		d.quiet()
	}
}

// TestOrder: the program of the end waits for that of the begin, and the next grant's for both.
func TestOrder(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "sleep 0.2; log begin", "sleep 0.1; log end")
	g := grantTo("alice", "a")
	g.Until = time.Now()
	for range 3 {
		lab.Must(t, d.give(g))
		d.take(g)
	}
	d.book.Left()
	d.logged("begin alice", "end alice", "begin alice", "end alice", "begin alice", "end alice")
}

// TestRevokedBefore: a program that waits when its grant is closed or revoked is not started any more; that of the end
// is.
func TestRevokedBefore(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "log begin; hold", "log end")
	first, second := grantTo("alice", "a"), grantTo("alice", "a")
	lab.Must(t, d.give(first))
	d.logged("begin alice")
	d.take(first)
	lab.Must(t, d.give(second))
	d.take(second)
	d.book.Left()
	lab.Eventually(t, "a report", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.Contains(d.events, "run failed")
	})
	d.release()
	d.logged("begin alice", "end alice", "end alice")
	d.quiet()
	if lines := d.log(); len(lines) != 3 {
		t.Errorf("got %q", lines)
	}
}

// TestOneClient: a client whose programs do not end, who opens and closes as often as the book allows, does not keep
// another's from being started.
func TestOneClient(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "log begin; hold", "log end")
	refused := 0
	for i := range 100 {
		g := grantTo("mallory", "a")
		g.Source = netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		if err := d.give(g); errors.Is(err, ErrBusy) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("none was refused")
	}
	lab.Must(t, d.give(grantTo("bob", "a")))
	lab.Eventually(t, "the begin of another client's", func() bool {
		return slices.ContainsFunc(d.log(), func(line string) bool { return strings.HasPrefix(line, "begin bob ") })
	})
	d.release()
	d.quiet()
}

// TestCancelled: what the firewall does not take begins nothing, and a service whose program cannot be started is
// refused.
func TestCancelled(t *testing.T) {
	d := newDoor(t, "log begin", "log end")
	r := lab.Value(d.book.Reserve([]Grant{grantTo("alice", "a")}))(t)
	d.book.Cancel(r)
	if err := d.give(grantTo("alice", "b"), grantTo("alice", "c")); err == nil {
		t.Error("a program that is not there was promised")
	}
	if s := d.book.Status(); s.Live != 0 || len(s.Unfit) != 1 {
		t.Errorf("got %+v", s)
	}
	d.open()
	d.quiet()
	if lines := d.log(); len(lines) > 0 {
		t.Errorf("it ran: %q", lines)
	}
}

// TestCancelledRenewal: a renewal that the firewall does not take prolongs nothing, and another one does: the program
// of the end is told when the grant ended.
func TestCancelledRenewal(t *testing.T) {
	d := newDoor(t, "", "log $SPA_UNTIL")
	g := grantTo("alice", "a")
	lab.Must(t, d.give(g))
	longer := g
	longer.Until = g.Until.Add(time.Hour)
	d.book.Cancel(lab.Value(d.book.Reserve([]Grant{longer}))(t))
	d.take(g)
	d.book.Left()
	want := g.Until.UTC().Format(time.RFC3339)
	d.logged(want)
	lab.Must(t, errors.Join(d.give(g), d.give(longer)))
	d.take(longer)
	d.book.Left()
	d.logged(want, longer.Until.UTC().Format(time.RFC3339))
}

// TestEndFails: a program of an end that cannot be started runs at the next start.
func TestEndFails(t *testing.T) {
	d := newDoor(t, "", "log end")
	program := filepath.Join(d.dir, "program")
	lab.Must(t, os.WriteFile(program, []byte("#!/bin/sh\necho end alice 1 >>"+d.dir+"/log\n"), 0o755))
	a := config.Action{After: []string{program}, User: "root", Timeout: time.Minute}
	d.c = gateway(t, map[string]config.Action{"a": a})
	d.open()
	g := grantTo("alice", "a")
	lab.Must(t, d.give(g))
	lab.Must(t, os.Rename(program, program+"-"))
	d.take(g)
	d.book.Left()
	lab.Eventually(t, "a failure", func() bool { return d.book.Status().Stuck == 1 })
	lab.Must(t, os.Rename(program+"-", program))
	d.open()
	d.logged("end alice")
}

// TestRunnerGone: without a runner nothing new begins, and what is owed stays owed until the next start.
func TestRunnerGone(t *testing.T) {
	d := newDoor(t, "log begin", "log end")
	g := grantTo("alice", "a")
	lab.Must(t, d.give(g))
	d.logged("begin alice")
	d.quiet()
	p := lab.Value(os.FindProcess(d.book.runner.PID))(t)
	lab.Must(t, p.Kill())
	lab.Eventually(t, "an error", func() bool { return d.book.Status().Trouble != nil })
	if err := d.give(grantTo("bob", "a")); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
	lab.Must(t, d.give(g)) // it has begun
	d.take(g)
	d.book.Left()
	d.open()
	d.logged("begin alice", "end alice")
}

// TestForgedFile: a file with anything in it starts nothing but what the settings have, with values that are good.
func TestForgedFile(t *testing.T) {
	good := record{grantTo("alice", "a").key(), 7, time.Unix(1900000000, 0), begun}
	if r, ok := decode(good.encode()); !ok || r != good {
		t.Errorf("got %+v, %v", r, ok)
	}
	for name, change := range map[string]func(r *record){
		"a client":  func(r *record) { r.client = "a\nb" },
		"a service": func(r *record) { r.service = "../x" },
		"no phase":  func(r *record) { r.phase = 0 },
		"a phase":   func(r *record) { r.phase = 9 },
	} {
		r := good
		if change(&r); func() bool { _, ok := decode(r.encode()); return ok }() {
			t.Errorf("%s: accepted", name)
		}
	}
	b := good.encode()
	for i := range b {
		b[i] ^= 1
		if _, ok := decode(b); ok {
			t.Errorf("byte %d was changed", i)
		}
		b[i] ^= 1
	}
	linked := good
	linked.source = netip.MustParseAddr("fe80::1%3")
	if r, ok := decode(linked.encode()); !ok || r != linked {
		t.Errorf("got %+v, %v", r, ok)
	}
	dir := t.TempDir()
	for name, spoil := range map[string]func(path string) error{
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a link":      func(path string) error { return os.Symlink("/dev/null", path) },
		"other text":  func(path string) error { return os.WriteFile(path, []byte("something else entirely"), 0o600) },
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		lab.Must(t, spoil(path))
		if f, err := OpenFile(path); err == nil {
			t.Errorf("%s: opened %v", name, f.Name())
		}
	}
}
