package keys

import (
	"bytes"
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"sallyport/keys/place"
	"sallyport/keys/strict"
)

// Of the files with one id one counts: a revoked one, otherwise the first in the alphabet. A copy is called alice-old
// or alice2, so the original continues; and whichever of them is revoked, none opens anything. This depends on the
// files alone, not on the order in which they were read, so a restart changes nothing. A file with a mistake keeps its
// place, as far as its id can be read: no copy opens what an edit was to shut.

// A Change is a client before and after; nil if there was or is none of that name.
type Change struct{ Before, After *Client }

// claimed is the error of a file that does not count because another has its id: a packet would belong to both.
type claimed struct{ *place.FileError }

func (c claimed) Unwrap() error { return c.FileError }

// precedence sorts first what counts.
func precedence(a, b *record) int {
	if a.revoked() != b.revoked() {
		if a.revoked() {
			return -1
		}
		return 1
	}
	return byName(a, b)
}

// admit adds those of the clients that count, and refuses the others. It returns why, by name. It takes those of
// r.mistaken into account.
func (r *Registry) admit(clients []*record) map[string]error {
	slices.SortFunc(clients, precedence)
	why := make(map[string]error)
	barred := make(map[ID]*record) // ids that open nothing, and who has them
	for _, c := range clients {
		err := r.unclaimed(c, barred)
		mistaken := r.mistaken[c.name] == c
		switch {
		case !mistaken && err == nil:
			r.add(c)
		case !mistaken:
			why[c.name] = err
			r.refused[c.name] = c
		}
		if mistaken && err == nil || c.revoked() && r.byName[c.name] != c {
			for _, id := range c.ids() {
				barred[id] = c
			}
		}
	}
	return why
}

// unclaimed returns an error for a client whose id another one has.
func (r *Registry) unclaimed(c *record, barred map[ID]*record) error {
	for i, id := range c.ids() {
		other := cmp.Or(r.byID[id], barred[id])
		if other == nil || other.name == c.name {
			continue
		}
		text := "is also in " + r.path(other.name) + ": one of them is a copy"
		if other.revoked() {
			text = "is also in " + r.path(other.name) + ", and revoked there"
		}
		return claimed{&place.FileError{File: r.path(c.name), Key: []string{"id", "previous.id"}[i], Text: text}}
	}
	return nil
}

// replace puts a client in the place of the one of that name, or what can be read of a mistaken file, and decides again
// for all that have an id in common with it. Nil is none. It returns what changes, the named client first, and why
// clients are refused. Those that lose their place to another are bad at once.
func (r *Registry) replace(name string, c, mistaken *record) ([]Change, map[string]error) {
	before := make(map[string]*record)
	take := func(c *record) {
		before[c.name] = c
		r.remove(c)
	}
	if was := r.byName[name]; was != nil {
		take(was)
	}
	group := r.refused
	r.refused = make(map[string]*record)
	delete(group, name)
	delete(r.mistaken, name)
	if mistaken != nil {
		r.mistaken[name] = mistaken
	}
	maps.Copy(group, r.mistaken)
	if c != nil {
		group[name] = c
	}
	for _, of := range slices.Collect(maps.Values(group)) {
		for _, id := range of.ids() {
			if owner := r.byID[id]; owner != nil {
				take(owner)
				group[owner.name] = owner
			}
		}
	}
	why := r.admit(slices.Collect(maps.Values(group)))
	return r.changes(name, before, group, why), why
}

// changes compares the clients of a group with the earlier ones.
func (r *Registry) changes(name string, before, group map[string]*record, why map[string]error) []Change {
	var list []Change
	if was, is := before[name], r.byName[name]; was != nil || is != nil {
		list = append(list, Change{was.whole(), is.whole()})
	}
	for _, other := range slices.Sorted(maps.Keys(group)) {
		was, is := before[other], r.byName[other]
		_, bad := r.bad[other]
		switch {
		case other == name || r.mistaken[other] != nil:
			continue
		case is != nil:
			delete(r.bad, other)
		case was != nil || bad:
			r.bad[other] = why[other]
		}
		if was != is {
			list = append(list, Change{was.whole(), is.whole()})
		}
	}
	return list
}

// mistake is the error of a file that could be read and has a mistake, and what can be read of it.
type mistake struct {
	error
	claims *record
}

func (m mistake) Unwrap() error { return m.error }

var (
	idLine      = regexp.MustCompile(`(?m)^[^#\n]*\bid["']?[ \t]*=[ \t]*["']{1,3}([0-9a-f]{16})["']`)
	revokedLine = regexp.MustCompile(`(?m)^[^#\n]*\brevoked\b`)
)

// read reads a client's file. Its error is a mistake if the file has ids all the same.
func (r *Registry) read(name string, s strict.Schema, terms *pool) (*record, error) {
	c, err := readClient(r.folder, name+Suffix, s)
	if err == nil {
		return terms.record(c), nil
	}
	text, unread := r.folder.Read(name+Suffix, maxClientFile, nil) // also one with a mode that is refused
	ids := idLine.FindAllSubmatch(text, 2)
	if unread != nil || len(ids) == 0 {
		return nil, err
	}
	claims := &record{name: name, own: &own{}, terms: &Client{}}
	claims.id, _ = ParseID(string(ids[0][1])) // zero is nobody's
	if len(ids) > 1 {
		claims.own.previous = &Previous{}
		claims.own.previous.ID, _ = ParseID(string(ids[1][1]))
	}
	if revokedLine.Match(text) {
		claims.own.revoked = time.Unix(0, 0)
	}
	return nil, mistake{err, claims}
}

// Copies returns the paths of other files of the directory in which an id of the client stands, sorted. Once no file of
// the client's own has that id any more, such a copy counts.
func Copies(dir string, c *Client) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var copies []string
	for _, f := range files {
		if !f.Type().IsRegular() || filepath.Ext(f.Name()) != Suffix || f.Name() == c.Name+Suffix {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(c.IDs(), func(id ID) bool { return bytes.Contains(text, []byte(id.String())) }) {
			copies = append(copies, filepath.Join(dir, f.Name()))
		}
	}
	return copies, nil
}
