package keys

import (
	"os"
	"reflect"

	"sallyport/keys/place"
)

// Fresh reads all files of the directory again, by way of the directory as it was opened, into a
// Registry of its own. Where anything is wrong with any of them, or with the directory (see InPlace),
// that is the list, and there is none.
func (r *Registry) Fresh() (*Registry, []error) {
	if r.folder.Root == nil {
		return nil, []error{os.ErrClosed}
	}
	if err := place.InPlace(r.folder.Root, r.folder.Path); err != nil {
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
