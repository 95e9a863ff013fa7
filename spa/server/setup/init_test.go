package setup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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
