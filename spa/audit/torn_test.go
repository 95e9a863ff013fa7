package audit

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTornLine: a line that a power loss cut in half does not swallow the next one, after a start or a rotation.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	tear := func() {
		if err := os.WriteFile(path, []byte("{\"half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, lines int) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		if len(got) != lines || got[0] != "{\"half" || !strings.HasPrefix(got[lines-1], "{\"time\"") {
			t.Errorf("%s: got %q, want %d lines, the first torn", when, got, lines)
		}
	}
	tear()
	log, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	log.Record(event("alice").As(Granted, nil))
	want("after a start", 2)
	log.Record(event("alice").As(Granted, nil))
	want("after a start", 3)

	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	tear()
	if err := log.Reopen(); err != nil {
		t.Fatal(err)
	}
	log.Record(event("alice").As(Granted, nil))
	want("after a rotation", 2)
}
