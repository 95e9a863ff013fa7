package recovery

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// TestUseOnAFullDisk: a use needs no space, and a key that cannot be recorded is not made.
func TestUseOnAFullDisk(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { lab.Must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	path := filepath.Join(dir, "uses")
	id := newKey(t, path, 2)
	b := openBook(t, path)
	for range 62 { // to the end of a page
		newKey(t, path, 1)
	}
	lab.Must(t, lab.FillDisk(filepath.Join(dir, "ballast")))
	if err := Add(path, keys.NewID(), 1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("another key: %v, want no space", err)
	}
	for n, want := range []error{nil, nil, ErrSpent} {
		if _, err := b.Use(id, 2, request(byte(n)), false, time.Now()); !errors.Is(err, want) {
			t.Errorf("use %d: got %v, want %v", n+1, err, want)
		}
	}
	b = openBook(t, path)
	if count, ok := b.Count(id); !ok || count.Left(0) != 0 {
		t.Errorf("got %+v", count)
	}
}
