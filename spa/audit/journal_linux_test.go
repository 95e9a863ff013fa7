package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// fakeJournal receives messages as systemd-journald does.
type fakeJournal struct {
	*testing.T
	conn *net.UnixConn
}

func newFakeJournal(t *testing.T, path string) *fakeJournal {
	t.Helper()
	conn := lab.Value(net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path}))(t)
	t.Cleanup(func() { conn.Close() })
	return &fakeJournal{t, conn}
}

// next returns the fields of the next message.
func (j *fakeJournal) next() map[string][]string {
	j.Helper()
	var buf [1 << 16]byte
	j.conn.SetReadDeadline(time.Now().Add(lab.Patience))
	n, err := j.conn.Read(buf[:])
	if err != nil {
		j.Fatal(err)
	}
	fields, err := fieldsOf(buf[:n])
	if err != nil {
		j.Fatalf("%v: %q", err, buf[:n])
	}
	return fields
}

// fieldsOf parses the native protocol.
func fieldsOf(b []byte) (map[string][]string, error) {
	fields := make(map[string][]string)
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, errors.New("a line has no end")
		}
		name, value, ok := strings.Cut(string(line), "=")
		if !ok {
			if len(rest) < 8 {
				return nil, errors.New("a length is missing")
			}
			size := binary.LittleEndian.Uint64(rest)
			if uint64(len(rest)) < 8+size+1 || rest[8+size] != '\n' {
				return nil, errors.New("a length is wrong")
			}
			value, rest = string(rest[8:8+size]), rest[8+size+1:]
		}
		fields[name] = append(fields[name], value)
		b = rest
	}
	return fields, nil
}

func openJournal(t *testing.T, path string) *Log {
	t.Helper()
	l := lab.Value(OpenJournal(path, slog.New(slog.DiscardHandler)))(t)
	t.Cleanup(func() { l.Close() })
	return l
}

func TestJournalFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	journal := newFakeJournal(t, path)
	l := openJournal(t, path)
	l.SetOrigin("gw", "1.2")
	granted := event("alice")
	granted.Receipt = spa.Receipt{Status: spa.Granted, Time: granted.Time,
		Services: []spa.Granting{{For: 30 * time.Second}}}
	l.Record(granted.As(Granted, nil))
	l.Record(event("bob").As(Denied, errors.New("not\nallowed")))
	l.Record(event("bob").As(Failed, errors.New("no firewall")))
	l.RecordAct(Act{Time: granted.Time, Act: "revoke", Program: "spa-server", Source: netip.MustParseAddr("192.0.2.7"),
		By: By{UID: 0, LoginUID: "1000", SudoUser: "carol"}, More: []slog.Attr{slog.Int("grants", 2)}})
	for _, want := range []map[string][]string{
		{"PRIORITY": {"6"}, "SYSLOG_IDENTIFIER": {"spa-server"}, "SPA_VERDICT": {"granted"}, "SPA_CLIENT": {"alice"},
			"SPA_ADDRESS": {"192.0.2.2"}, "SPA_FROM": {"192.0.2.2:40000"}, "SPA_SERVICE": {"ssh"},
			"SPA_UNTIL": {"2023-11-14T22:13:51Z"}, "SPA_GATEWAY": {"gw"}, "SPA_VERSION": {"1.2"},
			"SPA_TIME": {"2023-11-14T22:13:21Z"}, "SPA_COMMAND": {"open"}, "SPA_KEY": {"0102030405060708"},
			"MESSAGE": {"granted: open ssh for alice from 192.0.2.2:40000"}},
		{"PRIORITY": {"4"}, "SPA_REASON": {"not\nallowed"}, "SPA_VERDICT": {"denied"}},
		{"PRIORITY": {"3"}, "SPA_REASON": {"no firewall"}},
		{"PRIORITY": {"5"}, "SPA_ACT": {"revoke"}, "SPA_PROGRAM": {"spa-server"}, "SPA_ADDRESS": {"192.0.2.7"},
			"SPA_UID": {"0"}, "SPA_LOGIN_UID": {"1000"}, "SPA_SUDO_USER": {"carol"}, "SPA_GRANTS": {"2"},
			"SPA_GATEWAY": {"gw"}, "MESSAGE": {"spa-server revoke for 192.0.2.7 by user 0"}},
	} {
		got := journal.next()
		for name, values := range want {
			if !slices.Equal(got[name], values) {
				t.Errorf("%s is %q, want %q", name, got[name], values)
			}
		}
	}
}

// attempts is a sender that counts how often it was tried.
type attempts struct {
	sender
	tried atomic.Int64
}

func (a *attempts) send(message []byte) error {
	defer a.tried.Add(1)
	return a.sender.send(message)
}

// TestJournalRestarts: the journal's socket is removed and replaced while lines are written, and no line is lost.
func TestJournalRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	to := lab.Value(openSender(path))(t)
	tries := &attempts{sender: to}
	l := newLog(discard{}, slog.New(slog.DiscardHandler))
	l.startJournal(tries)
	defer l.Close()
	for i := range 10 {
		if i%2 == 0 { // a socket without a listener
			newFakeJournal(t, path).conn.Close() // which leaves it there
		}
		client, before := fmt.Sprint("client-", i), tries.tried.Load()
		l.Record(event(client).As(Granted, nil))
		lab.Eventually(t, "an attempt", func() bool { return tries.tried.Load() > before })
		os.Remove(path)
		journal := newFakeJournal(t, path)
		if got := journal.next()["SPA_CLIENT"]; !slices.Equal(got, []string{client}) {
			t.Errorf("got %v", got)
		}
		journal.conn.Close()
		os.Remove(path)
	}
	if lost := l.Lost(); lost.Lines > 0 {
		t.Errorf("lost %d lines: %v", lost.Lines, lost.Err)
	}
}

// stuck is a journal that accepts nothing.
type stuck struct{ closed bool }

func (s *stuck) send([]byte) error { time.Sleep(100 * time.Millisecond); return errTryAgain }
func (s *stuck) close() error      { s.closed = true; return nil }

// TestJournalStalls: a journal that accepts nothing blocks nothing, and each line is counted as lost and reported,
// including those that are queued when the log is closed.
func TestJournalStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops lab.Buffer
		l := newLog(discard{}, slog.New(slog.NewTextHandler(&ops, nil)))
		l.startJournal(&stuck{})
		const lines = journalQueue + 1000
		start := time.Now()
		for range lines {
			l.Record(event("alice").As(Granted, nil))
		}
		if waited := time.Since(start); waited > 0 {
			t.Errorf("the line waited for %v", waited)
		}
		if lost := l.Lost(); lost.Lines < 900 {
			t.Errorf("%d lines are lost, want at least 900: 1000 had no room", lost.Lines)
		}
		time.Sleep(10 * time.Second)
		l.Close()
		if waited := time.Since(start); waited > 20*time.Second {
			t.Errorf("closed after %v", waited)
		}
		if lost := l.Lost(); lost.Lines != lines {
			t.Errorf("lost %d of %d lines", lost.Lines, lines)
		}
		if !strings.Contains(ops.String(), "audit lines lost") {
			t.Errorf("the loss was not reported: %s", ops.String())
		}
	})
}

// TestJournalFlood: all lines of a burst reach a journal that reads, or are counted.
func TestJournalFlood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	journal := newFakeJournal(t, path)
	l := openJournal(t, path)
	read := make(chan int)
	go func() {
		n := 0
		for ; journal.next()["SPA_CLIENT"][0] != "last"; n++ {
		}
		read <- n
	}()
	const lines = 20000
	for range lines {
		l.Record(event("alice").As(Granted, nil))
	}
	lab.Eventually(t, "room in the queue", func() bool { return len(l.sent.messages) < journalQueue/2 })
	l.Record(event("last").As(Granted, nil))
	if got, lost := <-read, l.Lost().Lines; uint64(got)+lost != lines {
		t.Errorf("%d lines arrived and %d were lost, of %d", got, lost, lines)
	}
}

func FuzzJournalField(f *testing.F) {
	f.Add("value")
	f.Add("two\nlines\n")
	f.Add("MESSAGE=forged\nPRIORITY=0\n")
	f.Fuzz(func(t *testing.T, value string) {
		got, err := fieldsOf(field(field(nil, "SPA_REASON", value), "SPA_CLIENT", "alice"))
		if err != nil || len(got) != 2 || got["SPA_REASON"][0] != value || got["SPA_CLIENT"][0] != "alice" {
			t.Errorf("%q becomes %q, %v", value, got, err)
		}
	})
}
