package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Log writes events. It is safe for concurrent use.
type Log struct {
	lines *slog.Logger // a JSON line for each spent request
	out   *lossyFile
	ops   *slog.Logger // what the administrator has to know now

	mu       sync.Mutex
	counts   map[string]uint64 // by verdict and reason, since the start
	recent   map[tallyKey]int  // refusals that authenticated, since the last summary
	alarms   map[string]string // client: the latest second address, since the last summary
	lost     uint64            // audit lines lost, since the last summary
	summary  *time.Timer       // armed only while there is something to say: an idle server does not wake
	interval time.Duration
}

type tallyKey struct {
	client, reason string
}

// Open opens the audit log at path for appending, creating it with mode 0640, and says what else
// is worth knowing to ops. An empty path records no lines; counters and summaries work as ever.
func Open(path string, ops *slog.Logger) (*Log, error) {
	var w io.WriteCloser = discard{}
	if path != "" {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return nil, fmt.Errorf("audit: opening the log: %w", err)
		}
		w = file
	}
	return newLog(w, ops, time.Second), nil
}

func newLog(w io.WriteCloser, ops *slog.Logger, interval time.Duration) *Log {
	out := &lossyFile{w: w}
	return &Log{
		lines:    slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{ReplaceAttr: plainKeys})),
		out:      out,
		ops:      ops,
		counts:   make(map[string]uint64),
		recent:   make(map[tallyKey]int),
		alarms:   make(map[string]string),
		interval: interval,
	}
}

// plainKeys drops the level, which is always the same, and the message, which is the verdict.
func plainKeys(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

// Record counts the event and, when it was spent, writes its line. It never fails: a line that
// cannot be written (a full disk) is counted, and said, and shuts nobody out.
func (l *Log) Record(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[counter(e)]++
	if !e.Verdict.Spent() {
		l.tally(e)
		return
	}
	record := slog.NewRecord(e.Time, slog.LevelInfo, "", 0)
	record.AddAttrs(e.attrs()...)
	if err := l.lines.Handler().Handle(context.Background(), record); err != nil {
		l.lost++
		l.arm()
	}
}

// counter names the counter of an event: its verdict, and the reason where a verdict has several.
func counter(e Event) string {
	if e.Err == nil || e.Verdict == Denied || e.Verdict == Failed {
		return e.Verdict.String()
	}
	return e.Verdict.String() + ": " + reason(e.Err)
}

// reason returns the innermost error's text: the sentinel, without what was wrapped around it, so
// that the number of counters is bounded by the program and not by what is sent to it.
func reason(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// tally counts a refusal of a packet that authenticated, for the next summary. There are at most
// as many keys as clients times reasons; who does not authenticate adds none.
func (l *Log) tally(e Event) {
	if e.Client == "" {
		return
	}
	l.recent[tallyKey{e.Client, reason(e.Err)}]++
	if e.Copied {
		l.alarms[e.Client] = e.From.Addr().String()
	}
	l.arm()
}

// arm starts the timer for the next summary, unless it runs.
func (l *Log) arm() {
	if l.summary == nil {
		l.summary = time.AfterFunc(l.interval, l.summarise)
	}
}

// summarise says what was tallied, a line a client, and starts over.
func (l *Log) summarise() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.summary = nil
	l.say()
}

func (l *Log) say() {
	if l.lost > 0 {
		l.ops.Error("audit lines lost: the log cannot be written", "lines", l.lost, "error", l.out.last)
		l.lost = 0
	}
	byClient := make(map[string][]string)
	for key, n := range l.recent {
		byClient[key.client] = append(byClient[key.client], fmt.Sprintf("%d × %s", n, key.reason))
	}
	for _, client := range sortedKeys(byClient) {
		reasons := byClient[client]
		slices.Sort(reasons)
		text := strings.Join(reasons, ", ")
		if from, ok := l.alarms[client]; ok {
			l.ops.Warn("packets of this client came from an address that cannot be its own: somebody may be copying them",
				"client", client, "from", from, "refused", text)
			continue
		}
		l.ops.Info("refused without an answer", "client", client, "refused", text)
	}
	clear(l.recent)
	clear(l.alarms)
}

// Counts returns how many packets ended with each verdict and reason since the start.
func (l *Log) Counts() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[string]uint64, len(l.counts))
	for key, n := range l.counts {
		counts[key] = n
	}
	return counts
}

// Close says what is still to be said and closes the log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.summary != nil {
		l.summary.Stop()
		l.summary = nil
	}
	l.say()
	return l.out.w.Close()
}

// lossyFile writes whole lines, or none: what a full disk cut off is ended before the next line.
type lossyFile struct {
	w    io.WriteCloser
	torn bool
	last error
}

func (f *lossyFile) Write(line []byte) (int, error) {
	if f.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := f.w.Write(line)
	if err != nil {
		f.torn = f.torn && n == 0 || n > 0
		f.last = err
		return n, err
	}
	f.torn = false
	return n, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
