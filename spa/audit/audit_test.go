package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

func knocked(client string) *spa.Knock {
	return &spa.Knock{
		Client: &keys.Client{Name: client},
		KeyID:  0x0102030405060708,
		Key:    keys.NewKey(),
		Nonce:  spa.Nonce{1, 2, 3},
		Request: spa.Request{ID: spa.RequestID{15: 1}, Type: spa.TypeOpen, Time: time.Unix(1700000000, 0),
			Services: []service.Service{{Name: "ssh"}}},
	}
}

func event(client string) Event {
	return Event{Time: time.Unix(1700000001, 0).UTC(),
		From: netip.MustParseAddrPort("192.0.2.2:40000")}.Of(knocked(client))
}

// buffer is a log file in memory that can be full.
type buffer struct {
	bytes.Buffer
	room int // free bytes; negative: unlimited
}

func (b *buffer) Write(p []byte) (int, error) {
	if b.room < 0 {
		return b.Buffer.Write(p)
	}
	if len(p) <= b.room {
		b.room -= len(p)
		return b.Buffer.Write(p)
	}
	n, _ := b.Buffer.Write(p[:b.room])
	b.room = 0
	return n, errors.New("no space left on device")
}

func (b *buffer) Close() error { return nil }

func TestLine(t *testing.T) {
	file := &buffer{room: -1}
	l := newLog(file, slog.New(slog.DiscardHandler))
	granted := event("alice")
	granted.Receipt = spa.Receipt{Status: spa.Granted, Time: granted.Time,
		Services: []spa.Granting{{For: 30 * time.Second}}}
	l.Record(granted.As(Granted, nil))
	l.Record(event("bob").As(Denied, errors.New("not allowed")))

	lines := strings.Split(strings.TrimSpace(file.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %d lines, want 2:\n%s", len(lines), file.String())
	}
	want := `{"time":"2023-11-14T22:13:21Z","verdict":"granted","command":"open","client":"alice",` +
		`"key":"0102030405060708",` +
		`"from":"192.0.2.2:40000","services":["ssh"],"request":"00000000000000000000000000000001",` +
		`"stamp":"` + time.Unix(1700000000, 0).Format(time.RFC3339) + `","until":["2023-11-14T22:13:51Z"]}`
	if lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	if !strings.Contains(lines[1], `"verdict":"denied"`) || !strings.Contains(lines[1], `"reason":"not allowed"`) ||
		strings.Contains(lines[1], "until") {
		t.Errorf("got %s", lines[1])
	}
}

func TestOnlySpentIsRecorded(t *testing.T) {
	for v := Unopened; v <= Closed; v++ {
		file := &buffer{room: -1}
		l := newLog(file, slog.New(slog.DiscardHandler))
		spent := v == Denied || v == Failed || v == Repeated || v == Granted || v == Closed
		var err error
		if !spent {
			err = errors.New("why")
		}
		l.Record(event("alice").As(v, err))
		l.Close()
		if got := file.Len() > 0; got != spent {
			t.Errorf("%v: recorded %v, want %v", v, got, spent)
		}
		name := v.String()
		if !spent {
			name += ": why"
		}
		if got := l.Counts()[name]; got != 1 {
			t.Errorf("%v: counted %d times in %v", v, got, l.Counts())
		}
	}
}

func TestCountersAreBounded(t *testing.T) {
	l := newLog(&buffer{room: -1}, slog.New(slog.DiscardHandler))
	for i := range 1000 {
		l.Record(event("alice").As(Denied, fmt.Errorf("service-%d: no such service", i)))
		l.Record(Event{}.As(Unopened, fmt.Errorf("%w: attempt %d", spa.ErrMalformed, i)))
	}
	if n := len(l.Counts()); n != 2 {
		t.Errorf("%d counters, want 2: %v", n, l.Counts())
	}
}

// after waits in a synctest bubble for the time to pass and all messages to be written.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func stale(client string) Event {
	return Event{}.As(Unopened, &spa.Refused{Err: spa.ErrStale, Client: &keys.Client{Name: client}})
}

// TestSummary: refusals of packets that authenticate are reported a second later, in one line.
func TestSummary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops lab.Buffer
		l := newLog(&buffer{room: -1}, slog.New(slog.NewTextHandler(&ops, nil)))
		for range 10000 {
			l.Record(stale("alice"))
			l.Record(Event{}.As(Unopened, spa.ErrMAC)) // anyone can send these
		}
		after(2 * time.Second)
		if got := strings.Count(ops.String(), "\n"); got != 1 {
			t.Errorf("%d lines, want 1:\n%s", got, ops.String())
		}
		if !strings.Contains(ops.String(), "packets=10000") || !strings.Contains(ops.String(),
			"alice: 10000 × stale packet") {
			t.Errorf("got %s", ops.String())
		}
		ops.Reset()
		copied := event("bob")
		copied.Copied = true
		l.Record(copied.As(Elsewhere, errors.New("elsewhere")))
		l.Record(stale("bob"))
		after(5 * time.Second)
		if got := ops.String(); !strings.Contains(got, `level=WARN`) ||
			!strings.Contains(got, `of="bob: 1 × elsewhere" from=192.0.2.2`) ||
			!strings.Contains(got, `of="bob: 1 × stale packet"`) || strings.Contains(got, "alice") {
			t.Errorf("a copy, and a stale packet: got %s", got)
		}
		ops.Reset()
		broken := event("carol")
		broken.Fault = true
		l.Record(broken.As(Unspent, fmt.Errorf("journal: writing: %w", errors.New("no space left"))))
		after(10 * time.Second)
		if got := ops.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") ||
			!strings.Contains(got, "the journal cannot be used") || !strings.Contains(got, "journal: writing: no space left") {
			t.Errorf("a fault of the journal: got %s", got)
		}
	})
}

// TestOldCopiesFillNoLog: an attacker who recorded a packet of each of many clients can replay them for ever, and
// causes only an occasional line.
func TestOldCopiesFillNoLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops lab.Buffer
		l := newLog(&buffer{room: -1}, slog.New(slog.NewTextHandler(&ops, nil)))
		for range 3600 {
			for i := range 20 {
				l.Record(stale(fmt.Sprint("client-", i)))
			}
			after(time.Second)
		}
		if lines := strings.Count(ops.String(), "\n"); lines > 70 || len(ops.String()) > 70*300 {
			t.Errorf("an hour of old copies makes %d lines, %d bytes", lines, len(ops.String()))
		}
		if !strings.Contains(ops.String(), "and 15 more") {
			t.Errorf("got %s", ops.String())
		}
		after(10 * time.Minute)
		ops.Reset()
		l.Record(stale("alice"))
		after(1100 * time.Millisecond)
		if !strings.Contains(ops.String(), "alice") {
			t.Error("after a silence the first is not said within a second")
		}
	})
}

// TestStuckReader: a stalled reader of the operations log blocks nothing else.
func TestStuckReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		l := newLog(&buffer{room: -1}, slog.New(slog.NewTextHandler(w, nil)))
		l.Record(stale("alice"))
		after(time.Minute) // the summary is being written, but not read
		for range 10 {
			l.Record(stale("alice"))
			after(time.Minute)
		}
		if got := l.Counts()["unopened: stale packet"]; got != 11 {
			t.Errorf("%d packets counted, want 11", got)
		}
		go io.Copy(io.Discard, r)
		l.Close()
		w.Close()
	})
}

// slowHandler takes time for each message.
type slowHandler struct{ slog.Handler }

func (h slowHandler) Handle(ctx context.Context, r slog.Record) error {
	time.Sleep(300 * time.Millisecond)
	return h.Handler.Handle(ctx, r)
}

// TestCloseWaits: Close waits for a summary that is being written. The queue behind the log is closed next, and writing
// to it then would be a write to a closed channel.
func TestCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops lab.Buffer
		l := newLog(&buffer{room: -1}, slog.New(slowHandler{slog.NewTextHandler(&ops, nil)}))
		l.Record(stale("alice"))
		time.Sleep(shortPause + 100*time.Millisecond) // the summary is being written
		l.Close()
		got := ops.String()
		time.Sleep(time.Hour)
		if late := strings.TrimPrefix(ops.String(), got); late != "" || got == "" {
			t.Errorf("written before Close returned: %q, and after: %q", got, late)
		}
	})
}

// TestQueue: lines arrive in order; without a reader, writing continues and the loss is reported.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		q := NewQueue(w)
		for i := range 3000 {
			fmt.Fprintf(q, "line %d\n", i)
		}
		var got lab.Buffer
		go io.Copy(&got, r)
		synctest.Wait()
		q.Close()
		w.Close()
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(got.String()), "\n")
		if lines[0] != "line 0" || !strings.Contains(lines[1], "messages lost") || lines[2] != "line 1" {
			t.Errorf("got %q first", lines[:3])
		}
		if n := len(lines); n < queueLen || n > queueLen+3 {
			t.Errorf("%d lines came through, want as many as are queued (%d)", n, queueLen)
		}
	})
}

// TestQueueCloses: Close returns even without a reader, after a second: a slow reader has that long.
func TestQueueCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		q := NewQueue(w)
		fmt.Fprintln(q, "line")
		start := time.Now()
		q.Close()
		if waited := time.Since(start); waited != queueWait {
			t.Errorf("closed after %v, want %v", waited, queueWait)
		}
		r.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		q := NewQueue(w)
		fmt.Fprintln(q, "line")
		var got lab.Buffer
		time.AfterFunc(queueWait/2, func() { io.Copy(&got, r) })
		q.Close()
		w.Close()
		synctest.Wait()
		if got.String() != "line\n" {
			t.Errorf("a late reader got %q", got.String())
		}
	})
}

// TestOpenRefuses: Open refuses a file that could block the server, or a link that leads elsewhere.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	target, link, fifo := filepath.Join(dir, "target"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	lab.Must(t, errors.Join(os.Symlink(target, link), syscall.Mkfifo(fifo, 0o600)))
	another, hard := filepath.Join(dir, "another"), filepath.Join(dir, "hard")
	lab.Must(t, errors.Join(os.WriteFile(another, nil, 0o600), os.Link(another, hard)))
	for _, path := range []string{link, fifo, hard, dir, "/dev/null"} {
		if _, err := Open(path, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a file was made through a link")
	}
}

// TestFullDisk: lost lines are counted and reported, and the next line is complete.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // all in one summary
		var ops lab.Buffer
		file := &buffer{room: 20}
		l := newLog(file, slog.New(slog.NewTextHandler(&ops, nil)))
		for range 3 {
			l.Record(event("alice").As(Granted, nil))
		}
		file.room = -1
		l.Record(event("bob").As(Granted, nil))
		l.Close()
		lines := strings.Split(strings.TrimSpace(file.String()), "\n")
		if !json.Valid([]byte(lines[len(lines)-1])) || !strings.Contains(lines[len(lines)-1], "bob") {
			t.Errorf("the line after the full disk: %q", lines[len(lines)-1])
		}
		if !strings.Contains(ops.String(), "lines=3") || !strings.Contains(ops.String(), "no space left") {
			t.Errorf("got %s", ops.String())
		}
	})
}

func TestNoSecretInLog(t *testing.T) {
	file := &buffer{room: -1}
	l := newLog(file, slog.New(slog.DiscardHandler))
	e := event("alice")
	l.Record(e.As(Granted, nil))
	for _, secret := range []string{e.Knock.Key.Reveal(), e.Knock.Nonce.String()} {
		if strings.Contains(file.String(), secret) {
			t.Errorf("the log has %s", secret)
		}
	}
}

func TestOpenAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 2 {
		l := lab.Value(Open(path, slog.New(slog.DiscardHandler)))(t)
		l.Record(event("alice").As(Granted, nil))
		lab.Must(t, l.Close())
	}
	data := lab.Value(os.ReadFile(path))(t)
	if got := bytes.Count(data, []byte("\n")); got != 2 {
		t.Errorf("%d lines, want 2", got)
	}
	if info, _ := os.Stat(path); info.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v: others can read it", info.Mode())
	}
	if _, err := Open(filepath.Join(path, "below"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a log that cannot be opened: no error")
	}
}

func BenchmarkRecord(b *testing.B) {
	l := newLog(struct {
		io.Writer
		io.Closer
	}{io.Discard, discard{}}, slog.New(slog.DiscardHandler))
	e := event("alice").As(Granted, nil)
	for b.Loop() {
		l.Record(e)
	}
}
