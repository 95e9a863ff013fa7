package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
)

// InPlace returns an error where a directory that was opened at a path is not what the path names any
// more: who goes on to read it reads what somebody has put away. Where this user may not look, it returns nil.
func InPlace(root *os.Root, path string) error {
	have, err := root.Stat(".")
	if err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	named, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil
	case err != nil:
		return fmt.Errorf("looking for the directory that was opened: %w", err)
	case !os.SameFile(have, named):
		return fmt.Errorf("%s is another directory than the one that was opened, which was moved away", path)
	}
	return nil
}

// Fresh reads all files of the directory again, by way of the directory as it was opened, into a
// Registry of its own. Where anything is wrong with any of them, or with the directory (see InPlace),
// that is the list, and there is none.
func (r *Registry) Fresh() (*Registry, []error) {
	if r.folder.root == nil {
		return nil, []error{os.ErrClosed}
	}
	if err := InPlace(r.folder.root, r.folder.path); err != nil {
		return nil, []error{err}
	}
	next := &Registry{folder: r.folder}
	if errs := next.load(); len(errs) > 0 {
		return nil, errs
	}
	return next, nil
}

// Replace makes r hold the clients of next, all at once. Next is not to be used afterwards.
func (r *Registry) Replace(next *Registry) {
	r.loading.Lock()
	defer r.loading.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID, r.byName, r.bad = next.byID, next.byName, next.bad
}

// Same reports whether other is as c in everything. A nil Client is none.
func (c *Client) Same(other *Client) bool { return reflect.DeepEqual(c, other) }

// DecodeFileIn is DecodeFile for a file of a directory that was opened before, at the path dir: it
// works whatever the directories above allow by now.
func DecodeFileIn(root *os.Root, dir, file string, limit int64, dst any) (*Document, error) {
	d, err := DecodeFile(filepath.Join(dir, file), limit, dst)
	if !errors.Is(err, fs.ErrPermission) {
		return d, err // also of a link that leads out of the directory
	}
	anyone := func(folder, string, fs.FileInfo) error { return nil }
	return decodeSecret(folder{path: dir, root: root}, file, limit, anyone, dst, schema{})
}
