package keys

import (
	"os"
	"reflect"
	"slices"

	"sallyport/keys/place"
)

// Fresh reads all files again, through the directory as it was opened, into a new Registry. If anything is wrong with a
// file, or with the directory (see place.InPlace), it returns the errors and no Registry.
func (r *Registry) Fresh() (*Registry, []error) {
	if r.folder.Root == nil {
		return nil, []error{os.ErrClosed}
	}
	if err := place.InPlace(r.folder.Root, r.folder.Path); err != nil {
		return nil, []error{err}
	}
	r.mu.RLock()
	next := &Registry{folder: r.folder, fleet: r.fleet.clone()}
	r.mu.RUnlock()
	if errs := next.load(); len(errs) > 0 {
		return nil, errs
	}
	return next, nil
}

// Replace makes r hold the clients of next, all at once. Callers must not use next afterwards.
func (r *Registry) Replace(next *Registry) {
	r.loading.Lock()
	defer r.loading.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID, r.byName, r.refused, r.mistaken, r.bad = next.byID, next.byName, next.refused, next.mistaken, next.bad
	r.fleet, r.terms = next.fleet, next.terms
}

// Changes returns what changes if next takes the place of r: first what changes or leaves, then what is new, both
// sorted by name.
func (r *Registry) Changes(next *Registry) []Change {
	before, after := r.records(), next.records()
	var changes []Change
	for _, was := range before {
		is, found := find(after, was)
		if !found {
			changes = append(changes, Change{Before: was.whole()})
		} else if !was.same(is) {
			changes = append(changes, Change{was.whole(), is.whole()})
		}
	}
	for _, is := range after {
		if _, found := find(before, is); !found {
			changes = append(changes, Change{After: is.whole()})
		}
	}
	return changes
}

// find returns the record of the same name among sorted ones.
func find(sorted []*record, name *record) (*record, bool) {
	i, found := slices.BinarySearchFunc(sorted, name, byName)
	if !found {
		return nil, false
	}
	return sorted[i], true
}

// Same reports whether the two clients are equal in everything.
func (c *Client) Same(other *Client) bool { return reflect.DeepEqual(c, other) }
