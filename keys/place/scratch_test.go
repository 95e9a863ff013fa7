//go:build unix

package place

import (
	"os"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"
)

// TestScratch: a scratch file can be written and read, and leaves nothing; of a program that was killed, the next one
// removes what is left.
func TestScratch(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	lab.Must(t, os.WriteFile(beside(path), []byte("left"), 0o600))
	f, remove, err := Scratch(path)
	lab.Must(t, err)
	lab.Value(f.WriteAt([]byte("text"), 3))(t)
	got := make([]byte, 4)
	lab.Value(f.ReadAt(got, 3))(t)
	if string(got) != "text" {
		t.Errorf("it has %q", got)
	}
	if mode := lab.Value(f.Stat())(t).Mode().Perm(); mode != 0o600 {
		t.Errorf("its mode is %o", mode)
	}
	lab.Must(t, remove())
	lab.OnlyFiles(t, dir)
	if _, _, err := Scratch(filepath.Join(dir, "none", "f")); err == nil {
		t.Error("a file where there is no directory")
	}
}
