package keys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestFreshInPlace: clients are not read again from a directory that was moved away, and a directory that cannot be
// read completely changes nothing.
func TestFreshInPlace(t *testing.T) {
	top := t.TempDir()
	for _, dir := range []string{"one", "two"} {
		lab.Must(t, os.Mkdir(filepath.Join(top, dir), 0o700))
		put(t, filepath.Join(top, dir), client(dir, 1))
	}
	link := filepath.Join(top, "clients")
	lab.Must(t, os.Symlink("one", link))
	r := load(t, link)
	if next, errs := r.Fresh(); len(errs) > 0 || next.Len() != 1 {
		t.Errorf("got %v", errs)
	}
	lab.Must(t, os.Remove(link))
	if next, errs := r.Fresh(); len(errs) != 1 || next != nil {
		t.Errorf("the directory is gone: got %v", errs)
	}
	lab.Must(t, os.Symlink("two", link))
	if next, errs := r.Fresh(); len(errs) != 1 || next != nil ||
		!strings.Contains(errs[0].Error(), "no longer the directory that was opened") {
		t.Errorf("the directory is another: got %v", errs)
	}
}
