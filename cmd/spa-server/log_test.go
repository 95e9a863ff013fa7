package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestJournal: each message is one line without a time that begins with its priority.
func TestJournal(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(&journal{w: &out}).With("of", "gw")
	log.Info("ready", "knocks", "udp/62201", "guards", "ssh=tcp/22 web=tcp/80")
	log.Warn("it cannot\n<0>be read", "error", errors.New("a\nb\x1b[31m"))
	log.Error("gone")
	log.Debug("nothing")
	lines := strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	want := []string{`<6>ready of=gw knocks=udp/62201 guards="ssh=tcp/22 web=tcp/80"`, "<4>it cannot", "<3>gone of=gw"}
	if len(lines) != len(want) {
		t.Fatalf("got %q", lines)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) || strings.ContainsAny(lines[i], "\x1b") {
			t.Errorf("got %q, want %q", lines[i], want[i])
		}
	}
}

// TestToJournal: only the stream that systemd names is the journal's, not one of a shell started from it.
func TestToJournal(t *testing.T) {
	file := lab.Value(os.CreateTemp(t.TempDir(), ""))(t)
	defer file.Close()
	info := lab.Value(file.Stat())(t)
	stat := info.Sys().(*syscall.Stat_t)
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino): true, fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1): false, "": false,
		"x": false,
	} {
		if got := toJournal(stream, file); got != want {
			t.Errorf("%q: got %v, want %v", stream, got, want)
		}
	}
}
