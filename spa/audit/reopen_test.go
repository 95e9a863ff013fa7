package audit

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestReopen: lines continue in a new file once the old one was moved, and not before.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := lab.Value(Open(path, slog.New(slog.DiscardHandler)))(t)
	defer l.Close()
	steps := func(want string) {
		t.Helper()
		l.out.Write([]byte("line\n"))
		data, err := os.ReadFile(path)
		if err != nil || strings.Count(string(data), "line") != len(want) {
			t.Errorf("got %q (%v), want %d lines", data, err, len(want))
		}
	}
	steps("1")
	if err := l.Reopen(); err != nil { // nothing was moved
		t.Fatal(err)
	}
	steps("12")
	lab.Must(t, os.Rename(path, path+".1"))
	lab.Must(t, l.Reopen())
	steps("1")
	lab.Must(t, os.Rename(path, path+".2"))
	if err := os.Mkdir(path, 0o700); err != nil { // a log that cannot be opened changes nothing
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil {
		t.Error("a directory in the log's place: no error")
	}
	for _, target := range []string{"another", "none"} { // Open refuses both
		another := filepath.Join(filepath.Dir(path), "another")
		lab.Must(t, errors.Join(os.Remove(path), os.WriteFile(another, nil, 0o600), os.Symlink(target, path)))
		if err := l.Reopen(); err == nil {
			t.Errorf("a link to %s in the log's place: no error", target)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was made through a link")
	}
	l.out.Write([]byte("line\n"))
	if data, err := os.ReadFile(path + ".2"); err != nil || strings.Count(string(data), "line") != 2 {
		t.Errorf("got %q (%v), want the log to continue where it was", data, err)
	}
}
