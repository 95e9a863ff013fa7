package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Log writes events. It is safe for concurrent use.
type Log struct {
	path  string       // as it was opened
	dir   *os.Root     // of the path, for a user that may not go along that later; nil: no lines are recorded
	lines slog.Handler // a JSON line for each spent request and each act; or the journal
	out   *lossyFile
	sent  *journal     // nil: lines go to a file
	ops   *slog.Logger // messages for the administrator

	mu     sync.Mutex
	origin []slog.Attr             // of each line
	counts map[counter]*uint64     // since the start
	latest counter                 // of the last packet: in a flood, most packets end as the one before
	count  *uint64                 // its count; nil at first
	recent map[tallyKey]int        // refusals that authenticated, since the last summary
	alarms map[tallyKey]netip.Addr // the latest second address, since the last summary
	faults int                     // packets that a fault of the journal refused, since the last summary
	broken uint64                  // the same, since the start
	fault  error                   // the latest
	lost   uint64                  // audit lines lost, since the last summary
	total  Lost                    // since the start

	// The next summary. A timer runs only while there is something to report: an idle server does not wake. Old copies
	// can be sent for ever, so while they arrive the summaries become rarer.
	summary *time.Timer
	pause   time.Duration // before the next summary
	said    time.Time     // when the last one was
	closed  bool          // no further summary is due

	saying sync.WaitGroup // the summary that is due or is being said
}

// How long a summary waits: at first, and at most.
const (
	shortPause = time.Second
	longPause  = 64 * time.Second
)

type tallyKey struct {
	client, reason string
}

// Open opens the audit log at path for appending, creating it with mode 0640, and logs other news to ops. An empty
// path records no lines; counters and summaries still work.
func Open(path string, ops *slog.Logger) (*Log, error) {
	if path == "" {
		return newLog(discard{}, ops), nil
	}
	file, err := openFile(path, os.OpenFile)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	l := newLog(file, ops)
	l.path, l.out.torn = path, endsTorn(path)
	if l.dir, err = os.OpenRoot(filepath.Dir(path)); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the log's directory: %w", err), file.Close())
	}
	return l, nil
}

// endsTorn reports whether the last line of a file is incomplete, after a power cut or on a full disk. A file that
// cannot be read counts as whole.
func endsTorn(path string) bool {
	file, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	var last [1]byte
	if _, err := file.Seek(-1, io.SeekEnd); err != nil { // it is empty
		return false
	}
	_, err = file.Read(last[:])
	return err == nil && last[0] != '\n'
}

// openFile opens a file to append to. It never blocks, and writes to nothing but files: a full pipe would stop the
// line.
func openFile(path string, open func(path string, flag int, mode os.FileMode) (*os.File, error)) (*os.File, error) {
	file, err := open(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|noFollow, 0o640)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err == nil && links(info) > 1 {
		err = fmt.Errorf("%s has other names (hard links), so it may be someone else's file: remove this name", path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func newLog(w io.WriteCloser, ops *slog.Logger) *Log {
	out := &lossyFile{w: w}
	return &Log{
		lines:  slog.NewJSONHandler(out, &slog.HandlerOptions{ReplaceAttr: plainKeys}),
		out:    out,
		ops:    ops,
		counts: make(map[counter]*uint64),
		recent: make(map[tallyKey]int),
		alarms: make(map[tallyKey]netip.Addr),
		pause:  shortPause,
	}
}

// plainKeys drops the level, which is always the same, and the message, which is the verdict.
func plainKeys(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

// Record counts the event and, if it was spent, writes its line. It never fails: a line that cannot be written (a
// full disk) is counted and reported, and shuts no one out.
func (l *Log) Record(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(counterOf(e))
	if e.Client == "" || e.Verdict == Rechecked { // the one did not authenticate, the other is no news
		return
	}
	if !e.Verdict.Spent() {
		l.tally(e)
		return
	}
	_ = l.write(e.Time, e.Verdict.level(), e.attrs()) // counted: a packet's outcome does not depend on it
}

// add counts a packet. The caller holds the lock.
func (l *Log) add(key counter) {
	if l.count == nil || key != l.latest {
		l.latest, l.count = key, l.counts[key]
		if l.count == nil {
			l.count = new(uint64)
			l.counts[key] = l.count
		}
	}
	*l.count++
}

// write writes a line. One that is lost is counted too. The caller holds the lock.
func (l *Log) write(at time.Time, level slog.Level, attrs []slog.Attr) error {
	record := slog.NewRecord(at, level, "", 0)
	record.AddAttrs(attrs...)
	record.AddAttrs(l.origin...)
	err := l.lines.Handle(context.Background(), record)
	if err != nil {
		l.lose(1, at, err)
	}
	return err
}

// lose counts lines that were lost. The caller holds the lock.
func (l *Log) lose(lines uint64, at time.Time, err error) {
	l.lost += lines
	l.total = Lost{Lines: l.total.Lines + lines, Last: at, Err: err}
	l.arm()
}

// SetOrigin sets the gateway's name and the program's version, which every line has from now on. Of the version only
// the first word counts: the others are about the machine.
func (l *Log) SetOrigin(gateway, version string) {
	version, _, _ = strings.Cut(version, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.origin = []slog.Attr{slog.String("gateway", gateway), slog.String("version", version)}
}

// tally counts a refusal of a packet that authenticated, for the next summary. There are at most
// as many keys as clients times reasons.
func (l *Log) tally(e Event) {
	key := tallyKey{e.Client, reason(e.Err)}
	switch {
	case e.Fault:
		l.faults++
		l.broken++
		l.fault = e.Err
	case e.Copied:
		l.alarms[key] = e.From.Addr()
		fallthrough
	default:
		l.recent[key]++
	}
	l.arm()
}

// arm starts the timer for the next summary, unless it runs.
func (l *Log) arm() {
	if l.summary != nil || l.closed {
		return
	}
	if time.Since(l.said) > 2*l.pause {
		l.pause = shortPause
	}
	l.saying.Add(1)
	l.summary = time.AfterFunc(l.pause, l.summarise)
}

// summarise reports what was tallied and starts over. A slow reader of it delays nothing: no other summary is due
// until it has been written.
func (l *Log) summarise() {
	defer l.saying.Done()
	l.mu.Lock()
	say := l.gather()
	l.mu.Unlock()
	say()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.summary, l.said = nil, time.Now()
	l.pause = min(2*l.pause, longPause)
	if len(l.recent) > 0 || l.faults > 0 || l.lost > 0 {
		l.arm()
	}
}

// gather empties the tallies and returns the function that reports them: at most one line of each kind.
func (l *Log) gather() (say func()) {
	lost, cause := l.lost, l.total.Err
	refused, refusedOf := describe(l.recent, l.alarms, false)
	copied, copiedOf := describe(l.recent, l.alarms, true)
	from := make([]string, 0, len(l.alarms))
	for _, addr := range l.alarms {
		from = append(from, addr.String())
	}
	slices.Sort(from)
	faults, fault := l.faults, l.fault
	l.lost, l.faults = 0, 0
	clear(l.recent)
	clear(l.alarms)
	return func() {
		if lost > 0 {
			l.ops.Error("audit lines lost: the log cannot be written", "lines", lost, "error", cause)
		}
		if faults > 0 {
			l.ops.Error("knocks are refused because the journal cannot be used", "packets", faults, "error", fault)
		}
		if refused > 0 {
			l.ops.Info("refused without an answer", "packets", refused, "of", refusedOf)
		}
		if copied > 0 {
			l.ops.Warn("packets came from an address that cannot be their client's: someone may be copying them",
				"packets", copied, "of", copiedOf, "from", Few(slices.Compact(from), named))
		}
	}
}

// describe counts the refusals with an alarm, or those without, and names the first few.
func describe(recent map[tallyKey]int, alarms map[tallyKey]netip.Addr, alarmed bool) (packets int, clients string) {
	var texts []string
	for key, n := range recent {
		if _, alarm := alarms[key]; alarm == alarmed {
			packets += n
			texts = append(texts, fmt.Sprintf("%s: %d × %s", key.client, n, key.reason))
		}
	}
	slices.Sort(texts)
	return packets, Few(texts, named)
}

// named is how many clients or addresses a message names.
const named = 5

// Few joins the first texts with commas, and adds how many more there are.
func Few(texts []string, most int) string {
	if len(texts) <= most {
		return strings.Join(texts, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(texts[:most], ", "), len(texts)-most)
}

// Path returns the path of the log; empty if no lines are recorded.
func (l *Log) Path() string { return l.path }

// InJournal reports whether the lines go to the journal of systemd.
func (l *Log) InJournal() bool { return l.sent != nil }

// Lost is how many lines could not be written, when the last one was lost, and why.
type Lost struct {
	Lines uint64
	Last  time.Time
	Err   error // nil: none was
}

// Lost returns the lines lost since the log was opened.
func (l *Log) Lost() Lost {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Close waits a moment for lines on their way to the journal, and for a summary that is being written, writes the last
// one and closes the log. Callers must not record anything afterwards.
func (l *Log) Close() error {
	if l.sent != nil {
		l.sent.close()
	}
	l.mu.Lock()
	l.closed = true
	if l.summary != nil && l.summary.Stop() {
		l.saying.Done()
	}
	l.mu.Unlock()
	l.saying.Wait()
	l.mu.Lock()
	say := l.gather()
	l.mu.Unlock()
	say()
	if l.dir != nil {
		l.dir.Close()
	}
	return l.out.w.Close()
}

// lossyFile writes whole lines or none: a line that a full disk cut off is ended before the next one.
type lossyFile struct {
	w    io.WriteCloser
	torn bool
}

func (f *lossyFile) Write(line []byte) (int, error) {
	if f.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := f.w.Write(line)
	if err != nil {
		f.torn = f.torn && n == 0 || n > 0
		return n, err
	}
	f.torn = false
	return n, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }
