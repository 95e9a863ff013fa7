package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// JournalSocket is where systemd's journal receives messages.
const JournalSocket = "/run/systemd/journal/socket"

// How many lines wait for the journal, and how long a line waits for a journal that is busy or being restarted.
const (
	journalQueue = 4096
	journalWait  = 2 * time.Second
	journalRetry = 50 * time.Millisecond
)

var errJournalStalls = errors.New("the journal takes no messages")

// OpenJournal opens systemd's journal at its socket as an audit log: a message with fields for each line. It looks the
// socket up again for each message: the journal may not have created it yet, and replaces it when it restarts.
//
// The line never waits for the journal: a goroutine sends the messages, and those that do not fit into its queue are
// lost and counted.
func OpenJournal(socket string, ops *slog.Logger) (*Log, error) {
	to, err := openSender(socket)
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	if _, err := os.Stat(socket); err != nil {
		ops.Error("audit.file is \"journal\", but systemd's journal does not accept messages", "error", err)
	}
	l := newLog(discard{}, ops)
	l.startJournal(to)
	return l, nil
}

// startJournal makes the lines go to the journal, until Close.
func (l *Log) startJournal(to sender) {
	j := &journal{to: to, messages: make(chan []byte, journalQueue), done: make(chan struct{})}
	l.lines, l.sent = j, j
	go j.pass(l.loseOne)
}

// loseOne counts a line that did not reach the journal.
func (l *Log) loseOne(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose(1, time.Now(), err)
}

// AppendJournal writes an act's line to the journal while no server runs.
func AppendJournal(socket, gateway, version string, a Act) error {
	l, err := OpenJournal(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return l.last(gateway, version, a)
}

// sender sends datagrams to a socket, which may be replaced at any time.
type sender interface {
	send(message []byte) error // errTryAgain: no receiver, or it is busy
	close() error
}

var errTryAgain = errors.New("try again")

// journal is a slog.Handler for the journal of systemd.
type journal struct {
	to       sender
	messages chan []byte
	done     chan struct{}
	hurry    atomic.Bool // the log is being closed: nothing waits for the journal
}

// Handle queues a message. It fails if there is no room: it never waits.
func (j *journal) Handle(_ context.Context, r slog.Record) error {
	select {
	case j.messages <- message(r):
		return nil
	default:
		return errJournalStalls
	}
}

// Enabled returns true: all levels are written.
func (j *journal) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs and WithGroup are not used.
func (j *journal) WithAttrs([]slog.Attr) slog.Handler { return j }

// WithGroup is not used.
func (j *journal) WithGroup(string) slog.Handler { return j }

// pass sends the queued messages, and reports lost ones.
func (j *journal) pass(lost func(error)) {
	defer close(j.done)
	for m := range j.messages {
		if err := j.deliver(m); err != nil {
			lost(err)
		}
	}
}

// deliver sends a message, and keeps trying for a while if there is no receiver.
func (j *journal) deliver(message []byte) error {
	for give := time.Now().Add(journalWait); !j.hurry.Load(); time.Sleep(journalRetry) {
		err := j.to.send(message)
		if !errors.Is(err, errTryAgain) || !time.Now().Before(give) {
			return err
		}
	}
	return errJournalStalls
}

// close waits a moment for the queued messages to be sent.
func (j *journal) close() {
	close(j.messages)
	select {
	case <-j.done:
	case <-time.After(queueWait):
		j.hurry.Store(true)
		<-j.done
	}
	j.to.close()
}

// message returns a record in the journal's native protocol: see systemd's JOURNAL_NATIVE_PROTOCOL.
func message(r slog.Record) []byte {
	var b []byte
	b = field(b, "MESSAGE", sentence(r))
	b = field(b, "PRIORITY", strconv.Itoa(Priority(r.Level)))
	b = field(b, "SYSLOG_IDENTIFIER", "spa-server")
	b = field(b, "SPA_TIME", r.Time.Format(time.RFC3339Nano))
	r.Attrs(func(a slog.Attr) bool {
		name := "SPA_" + strings.ToUpper(a.Key)
		switch v := a.Value.Any().(type) {
		case []string: // a field may occur several times
			for _, text := range v {
				b = field(b, strings.TrimSuffix(name, "S"), text)
			}
		case []time.Time:
			for _, t := range v {
				b = field(b, name, t.Format(time.RFC3339Nano))
			}
		case time.Time:
			b = field(b, name, v.Format(time.RFC3339Nano))
		default:
			text := a.Value.String()
			if from, err := netip.ParseAddrPort(text); a.Key == "from" && err == nil {
				b = field(b, "SPA_ADDRESS", from.Addr().String())
			}
			if a.Key == "source" {
				name = "SPA_ADDRESS"
			}
			b = field(b, name, text)
		}
		return true
	})
	return b
}

// field appends a field. A value of several lines has its length before it.
func field(b []byte, name, value string) []byte {
	b = append(b, name...)
	if !strings.Contains(value, "\n") {
		return append(append(append(b, '='), value...), '\n')
	}
	b = append(b, '\n')
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	return append(append(b, value...), '\n')
}

// sentence returns the text of a message: "granted: open ssh for alice from 192.0.2.2:40000".
func sentence(r slog.Record) string {
	values := make(map[string]string)
	r.Attrs(func(a slog.Attr) bool {
		values[a.Key] = a.Value.String()
		if list, ok := a.Value.Any().([]string); ok {
			values[a.Key] = strings.Join(list, ",")
		}
		return true
	})
	var words []string
	for _, part := range []struct{ before, key, after string }{
		{"", "verdict", ":"}, {"", "program", ""}, {"", "act", ""}, {"", "command", ""}, {"", "services", ""},
		{"for ", "client", ""}, {"from ", "from", ""}, {"for ", "source", ""}, {"because: ", "reason", ""},
		{"by user ", "uid", ""},
	} {
		if value := values[part.key]; value != "" {
			words = append(words, part.before+value+part.after)
		}
	}
	return strings.Join(words, " ")
}

// Priority returns the level's priority of syslog(3).
func Priority(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return 3
	case level >= slog.LevelWarn:
		return 4
	case level > slog.LevelInfo:
		return 5
	}
	return 6
}
