package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// reloadable returns a bench whose server can read its files again.
func reloadable(t *testing.T) *bench {
	b := newBench(t)
	b.s.dir = b.s.config.Dir
	root := lab.Value(os.OpenRoot(b.s.dir))(t)
	t.Cleanup(func() { root.Close() })
	b.s.root = root
	return b
}

// TestReloadOfAnotherDirectory: if the whole directory was replaced, a reload must not combine a file from the new one
// with clients, including revoked ones, from the old.
func TestReloadOfAnotherDirectory(t *testing.T) {
	b := reloadable(t)
	old := b.s.dir + ".old"
	lab.Must(t, os.Rename(b.s.dir, old))
	defer os.Rename(old, b.s.dir)
	refused := func(want string) {
		t.Helper()
		if r, err := b.s.reload(t.Context()); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("got %+v and %v, want %s", r, err, want)
		}
	}
	refused("no such file")
	lab.Must(t, os.Mkdir(b.s.dir, 0o700))
	defer os.Remove(b.s.dir)
	refused("no longer the directory that was opened")
}

// TestReloadNamesSomeProblems: a reload lists only some of very many problems.
func TestReloadNamesSomeProblems(t *testing.T) {
	b := reloadable(t)
	for i := range 2 * mostProblems {
		lab.Must(t, os.WriteFile(filepath.Join(b.s.dir, fmt.Sprintf("c%d.toml", i)), nil, 0o600))
	}
	_, err := b.s.reload(t.Context())
	if err == nil || strings.Count(err.Error(), "\n") > mostProblems || !strings.Contains(err.Error(), " more") {
		t.Errorf("got %v", err)
	}
}
