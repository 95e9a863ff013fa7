package audit

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestTornLine: a line that a power loss cut in half does not swallow the next one, after a start or a rotation.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	tear := func() {
		lab.Must(t, os.WriteFile(path, []byte("{\"half"), 0o600))
	}
	want := func(when string, lines int) {
		data := lab.Value(os.ReadFile(path))(t)
		got := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		if len(got) != lines || got[0] != "{\"half" || !strings.HasPrefix(got[lines-1], "{\"time\"") {
			t.Errorf("%s: got %q, want %d lines, the first torn", when, got, lines)
		}
	}
	tear()
	log := lab.Value(Open(path, slog.New(slog.DiscardHandler)))(t)
	defer log.Close()
	log.Record(event("alice").As(Granted, nil))
	want("after a start", 2)
	log.Record(event("alice").As(Granted, nil))
	want("after a start", 3)

	lab.Must(t, os.Rename(path, path+".1"))
	tear()
	lab.Must(t, log.Reopen())
	log.Record(event("alice").As(Granted, nil))
	want("after a rotation", 2)
}
