package keys

import (
	"cmp"
	"maps"
	"slices"

	"sallyport/keys/place"
)

// Of the files with one id one counts: a revoked one, otherwise the one with the shortest name, of several the first in
// the alphabet. A copy is called alice-old or alice2, so the original goes on; and whichever of them is revoked, none
// opens anything. This depends on the files alone, not on the order in which they were read, so a restart changes
// nothing.

// A Change is a client before and after; nil if there was or is none of that name.
type Change struct{ Before, After *Client }

// claimed is the error of a file that does not count because another has its id: a packet would belong to both.
type claimed struct{ *place.FileError }

func (c claimed) Unwrap() error { return c.FileError }

func isRevoked(c *Client) bool { return !c.Revoked.IsZero() }

// precedence sorts first what counts.
func precedence(a, b *Client) int {
	if isRevoked(a) != isRevoked(b) {
		if isRevoked(a) {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
}

// admit adds those of the clients that count, and refuses the others. It returns why, by name.
func (r *Registry) admit(clients []*Client) map[string]error {
	slices.SortFunc(clients, precedence)
	why := make(map[string]error)
	revoked := make(map[ID]*Client) // of refused files: their other keys are revoked too
	for _, c := range clients {
		err := r.unclaimed(c, revoked)
		if err == nil {
			r.add(c)
			continue
		}
		why[c.Name] = err
		r.refused[c.Name] = c
		if isRevoked(c) {
			for _, id := range c.IDs() {
				revoked[id] = c
			}
		}
	}
	return why
}

// unclaimed returns an error for a client whose id another one has.
func (r *Registry) unclaimed(c *Client, revoked map[ID]*Client) error {
	for i, id := range c.IDs() {
		other := cmp.Or(r.byID[id], revoked[id])
		if other == nil || other.Name == c.Name {
			continue
		}
		text := "is also in " + r.path(other.Name) + ": one of them is a copy"
		if isRevoked(other) {
			text = "is also in " + r.path(other.Name) + ", and revoked there"
		}
		return claimed{&place.FileError{File: r.path(c.Name), Key: []string{"id", "previous.id"}[i], Text: text}}
	}
	return nil
}

// replace puts a client in the place of the one of that name, and decides again for all that have an id in common with
// it. Nil is none. It returns what changes, the named client first, and why clients are refused. Those that lose their
// place to another are bad at once.
func (r *Registry) replace(name string, c *Client) ([]Change, map[string]error) {
	before := make(map[string]*Client)
	take := func(c *Client) {
		before[c.Name] = c
		r.remove(c)
	}
	if was := r.byName[name]; was != nil {
		take(was)
	}
	group := r.refused
	r.refused = make(map[string]*Client)
	delete(group, name)
	if c != nil {
		group[name] = c
	}
	for _, of := range slices.Collect(maps.Values(group)) {
		for _, id := range of.IDs() {
			if owner := r.byID[id]; owner != nil {
				take(owner)
				group[owner.Name] = owner
			}
		}
	}
	why := r.admit(slices.Collect(maps.Values(group)))
	return r.changes(name, before, group, why), why
}

// changes compares the clients of a group with those of before.
func (r *Registry) changes(name string, before, group map[string]*Client, why map[string]error) []Change {
	var list []Change
	if was, is := before[name], r.byName[name]; was != nil || is != nil {
		list = append(list, Change{was, is})
	}
	for _, other := range slices.Sorted(maps.Keys(group)) {
		was, is := before[other], r.byName[other]
		_, bad := r.bad[other]
		switch {
		case other == name:
			continue
		case is != nil:
			delete(r.bad, other)
		case was != nil || bad:
			r.bad[other] = why[other]
		}
		if was != is {
			list = append(list, Change{was, is})
		}
	}
	return list
}
