package keys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFreshInPlace: clients are not read again from a directory that was moved away, and a directory that cannot be
// read completely changes nothing.
func TestFreshInPlace(t *testing.T) {
	top := t.TempDir()
	for _, dir := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(top, dir), client(dir, 1))
	}
	link := filepath.Join(top, "clients")
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	r := load(t, link)
	if next, errs := r.Fresh(); len(errs) > 0 || next.Len() != 1 {
		t.Errorf("got %v", errs)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if next, errs := r.Fresh(); len(errs) != 1 || next != nil {
		t.Errorf("the directory is gone: got %v", errs)
	}
	if err := os.Symlink("two", link); err != nil {
		t.Fatal(err)
	}
	if next, errs := r.Fresh(); len(errs) != 1 || next != nil ||
		!strings.Contains(errs[0].Error(), "no longer the directory that was opened") {
		t.Errorf("the directory is another: got %v", errs)
	}
}
