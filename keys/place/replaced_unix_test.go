//go:build unix

package place

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sallyport/spa/lab"
)

// TestReplacedMeanwhile: a file that is replaced while it is being opened is read, old or new; a link in its place is
// never followed.
func TestReplacedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	root := lab.Value(os.OpenRoot(dir))(t)
	defer root.Close()
	path, next, victim := filepath.Join(dir, "f"), filepath.Join(dir, "next"), filepath.Join(dir, "victim")
	lab.Must(t, errors.Join(os.WriteFile(path, []byte("ours"), 0o600),
		os.WriteFile(victim, []byte("another's"), 0o600)))
	for name, test := range map[string]struct {
		make  func() error
		links bool
	}{
		"files": {func() error { return os.WriteFile(next, []byte("ours"), 0o600) }, false},
		"links": {func() error { return os.Symlink("victim", next) }, true},
	} {
		lab.Must(t, errors.Join(os.Remove(path), os.WriteFile(path, []byte("ours"), 0o600)))
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				err := test.make()
				if i%2 == 1 {
					err = errors.Join(os.Remove(next), os.WriteFile(next, []byte("ours"), 0o600))
				}
				if err := errors.Join(err, os.Rename(next, path)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for i := 0; i < 6000 && !t.Failed(); i++ {
			d := Folder{Path: dir}
			if i%2 == 1 {
				d.Root = root
			}
			text, err := d.Read("f", 99, nil)
			refused := err != nil && test.links && strings.Contains(err.Error(), "symbolic link")
			if !refused && (err != nil || string(text) != "ours") {
				t.Errorf("%s, root %v: read %q (%v)", name, d.Root != nil, text, err)
			}
		}
		close(stop)
		wg.Wait()
	}
}
