package audit

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
)

// TestReopenBehindAWall: the server's user continues in a new log if it could open the directory at the start, even if
// it cannot access the path to it.
func TestReopenBehindAWall(t *testing.T) {
	lab.NeedRoot(t)
	const nobody = 65534
	wall := filepath.Join(t.TempDir(), "wall")
	dir := filepath.Join(wall, "log")
	path := filepath.Join(dir, "audit.jsonl")
	must := func(err error) {
		t.Helper()
		lab.Must(t, err)
	}
	must(errors.Join(os.Mkdir(wall, 0o700), os.Mkdir(dir, 0o700), os.Chown(dir, nobody, -1)))
	l, err := Open(path, slog.New(slog.DiscardHandler))
	must(err)
	defer l.Close()
	must(os.Rename(path, path+".1"))
	must(sandbox.As("nobody", l.Reopen))
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	must(sandbox.As("nobody", l.Named))
}
