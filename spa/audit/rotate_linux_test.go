package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// rotateOften renames and reopens the log 200 times, in ten of them with the disk full and in ten with something else
// at its path, and returns how often reopening failed.
func rotateOften(t *testing.T, l *Log, path string) int {
	t.Helper()
	failed := 0
	for turn := range 200 {
		if err := os.Rename(path, fmt.Sprint(path, ".", turn)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		filled := ""
		switch turn % 20 {
		case 7:
			filled = filepath.Join(filepath.Dir(path), "other")
			lab.Must(t, lab.FillDisk(filled))
		case 13: // the new file cannot be opened: the old one stays in use
			lab.Must(t, os.Mkdir(path, 0o700))
		}
		if err := l.Reopen(); err != nil {
			failed++
			if err := errors.Join(l.Named(), os.Remove(path)); err == nil {
				t.Error("a log that could not be reopened is called by its name")
			}
		}
		if filled != "" {
			os.Remove(filled)
		}
	}
	return failed
}

// TestRotatedAtFullSpeed: however often the log is rotated while lines are written, and although the disk is full or
// the new file cannot be opened now and then, each line is in one of the files, or is counted as lost and reported.
func TestRotatedAtFullSpeed(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "audit.jsonl")
	var ops lab.Buffer
	l := lab.Value(Open(path, slog.New(slog.NewTextHandler(&ops, nil))))(t)
	var stop atomic.Bool
	written := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load() && n < 150_000; n++ {
			l.Record(event(fmt.Sprint("client-", n)).As(Granted, nil))
		}
		written <- n
	}()
	failed := rotateOften(t, l, path)
	stop.Store(true)
	n := <-written
	lab.Must(t, l.Close())
	if failed != 10 {
		t.Errorf("reopening failed %d times, want 10", failed)
	}
	seen := clientsIn(t, dir)
	for client, times := range seen {
		if times != 1 {
			t.Errorf("%s is there %d times", client, times)
		}
	}
	lost := l.Lost().Lines
	if len(seen)+int(lost) != n {
		t.Errorf("%d lines are in the files and %d were lost, of %d", len(seen), lost, n)
	}
	if said := bytes.Contains([]byte(ops.String()), []byte("audit lines lost")); said != (lost > 0) {
		t.Errorf("%d lines lost, and reported: %v", lost, said)
	}
	t.Logf("%d lines in the files, %d lost on a full disk", len(seen), lost)
}

// clientsIn counts the lines of each client in the files of a directory. Lines that a full disk has cut off do not
// count.
func clientsIn(t *testing.T, dir string) map[string]int {
	t.Helper()
	files := lab.Value(filepath.Glob(filepath.Join(dir, "audit.jsonl*")))(t)
	seen := make(map[string]int)
	for _, file := range files {
		data := lab.Value(os.ReadFile(file))(t)
		for line := range bytes.Lines(data) {
			var event struct{ Client string }
			if json.Unmarshal(line, &event) == nil {
				seen[event.Client]++
			}
		}
	}
	return seen
}
