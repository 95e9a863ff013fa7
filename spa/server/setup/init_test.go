package setup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestInitLeavesNothing: an init that fails removes what it wrote.
func TestInitLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c := config.Default(dir)
	c.Name = "Not A Name"
	if err := Init(c, now); err == nil {
		t.Fatal("a configuration that cannot be read back was written")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	c = config.Default(filepath.Join(dir, "etc"))
	if err := Init(c, now); err == nil {
		t.Fatal("a configuration without a name was written")
	}
	if _, err := os.Lstat(c.Dir); err == nil {
		t.Error("the directory is left behind")
	}
	file := filepath.Join(dir, "file")
	lab.Must(t, os.WriteFile(file, nil, 0o600))
	if err := Init(config.Default(file), now); err == nil || errors.Is(err, ErrInitialized) {
		t.Errorf("below a file: got %v, want that it is no directory", err)
	}
}

// TestInitBelowAnothers: the owner of a directory cannot lead the state directory to one of root's.
func TestInitBelowAnothers(t *testing.T) {
	lab.NeedRoot(t)
	above, roots := t.TempDir(), t.TempDir()
	lab.Must(t, errors.Join(os.Chown(above, 65534, 65534), os.Symlink(roots, filepath.Join(above, "state"))))
	for _, below := range []string{"state", "state/deep"} {
		c := config.Default(filepath.Join(t.TempDir(), "etc"))
		c.Name, c.ServerID, c.Address = "gw", keys.NewServerID(), "gw.example.net"
		c.State = filepath.Join(above, below)
		if err := Init(c, now); err == nil {
			t.Errorf("%s: it was made", below)
		}
		if entries := lab.Value(os.ReadDir(roots))(t); len(entries) != 0 {
			t.Errorf("%s: in the directory of root: %v", below, entries)
		}
	}
}
