package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"

	"sallyport/keys/quote"
	"sallyport/spa/audit"
)

// newLog returns the log for the administrator. The systemd journal stamps lines itself, and takes their priority from
// a prefix (sd-daemon(3)).
func newLog(w io.Writer) *slog.Logger {
	if !toJournal(os.Getenv("JOURNAL_STREAM"), os.Stderr) {
		return slog.New(slog.NewTextHandler(w, nil))
	}
	return slog.New(&journal{w: w})
}

// toJournal reports whether the file is the journal stream that systemd names (systemd.exec(5)).
func toJournal(stream string, file *os.File) bool {
	info, err := file.Stat()
	if err != nil || stream == "" {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// journal is a slog.Handler that writes the message and then the attributes on one line.
type journal struct {
	w     io.Writer
	mu    sync.Mutex
	attrs []slog.Attr
}

func (j *journal) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (j *journal) Handle(ctx context.Context, r slog.Record) error {
	var line strings.Builder
	said := slog.NewRecord(r.Time, r.Level, "", 0)
	said.AddAttrs(j.attrs...)
	r.Attrs(func(a slog.Attr) bool { said.AddAttrs(a); return true })
	builtIn := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 &&
			(a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey && a.Value.String() == "") {
			return slog.Attr{}
		}
		return a
	}
	if err := slog.NewTextHandler(&line, &slog.HandlerOptions{ReplaceAttr: builtIn}).Handle(ctx, said); err != nil {
		return err
	}
	text := r.Message
	if rest := strings.TrimSpace(line.String()); rest != "" {
		text += " " + rest
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err := fmt.Fprintf(j.w, "<%d>%s\n", audit.Priority(r.Level), quote.Printable(text))
	return err
}

func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journal{w: j.w, attrs: append(append([]slog.Attr(nil), j.attrs...), attrs...)}
}

// WithGroup omits the group's name.
func (j *journal) WithGroup(string) slog.Handler { return j }
