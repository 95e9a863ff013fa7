package keys

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// fleetClients are the clients that a fleet's bundle lists. They win over files: a client of the same name in the
// directory is shut out.
type fleetClients struct {
	byID   map[ID]*record
	byName map[string]*record
	alone  bool // files do not count at all
	terms  pool
}

func (f fleetClients) clone() fleetClients {
	return fleetClients{byID: maps.Clone(f.byID), byName: maps.Clone(f.byName), alone: f.alone}
}

// lookup returns the client with this id, or nil.
func (r *Registry) lookup(id ID) *record {
	if len(r.fleet.byID) == 0 && !r.fleet.alone {
		return r.byID[id]
	}
	if c := r.fleet.byID[id]; c != nil {
		return c
	}
	c := r.byID[id]
	if c == nil || r.fleet.alone || r.fleet.byName[c.name] != nil {
		return nil
	}
	return c
}

// client returns the client of this name, or nil.
func (r *Registry) client(name string) *record {
	if c := r.fleet.byName[name]; c != nil {
		return c
	}
	if r.fleet.alone {
		return nil
	}
	return r.byName[name]
}

// visible drops the changes of files that do not count because of the fleet.
func (r *Registry) visible(changes []Change) []Change {
	return slices.DeleteFunc(changes, func(c Change) bool {
		named := c.After
		if named == nil {
			named = c.Before
		}
		return r.fleet.alone || r.fleet.byName[named.Name] != nil
	})
}

// Shadowed returns the clients whose files do not count because the fleet has a client of that name, sorted; with
// FleetAlone, all that have files.
func (r *Registry) Shadowed() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var names []string
	for name := range r.byName {
		if r.fleet.alone || r.fleet.byName[name] != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// FleetAlone makes the clients of the fleet the only ones: files do not count.
func (r *Registry) FleetAlone(alone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fleet.alone = alone
}

// FleetChanges returns what changes if these are all clients of the fleet, for ApplyFleet. Their names and ids must be
// unique. It changes nothing.
func (r *Registry) FleetChanges(next []*Client) ([]Change, error) {
	byName, byID := make(map[string]*Client, len(next)), make(map[ID]bool, len(next))
	for _, c := range next {
		if byName[c.Name] != nil {
			return nil, fmt.Errorf("client %s is listed twice", c.Name)
		}
		byName[c.Name] = c
		for _, id := range c.IDs() {
			if byID[id] {
				return nil, fmt.Errorf("client %s has the id of another client", c.Name)
			}
			byID[id] = true
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	var changes []Change
	for _, name := range slices.Sorted(maps.Keys(r.fleet.byName)) { // first: an id may move to another name
		if byName[name] == nil {
			changes = append(changes, Change{Before: r.fleet.byName[name].whole(), After: nil})
		}
	}
	var same Client // one for all: comparing them allocates
	for _, c := range next {
		was := r.client(c.Name)
		if was != nil {
			same = was.client()
		}
		if was == nil || !same.Fleet || !same.Same(c) {
			changes = append(changes, Change{Before: was.whole(), After: c})
		}
	}
	return changes, nil
}

// ApplyFleet makes changes that FleetChanges returned, or a part of them in their order. It returns them as they show:
// where a client leaves the fleet, its file counts again.
func (r *Registry) ApplyFleet(changes []Change) []Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fleet.byName == nil {
		r.fleet.byName, r.fleet.byID = make(map[string]*record), make(map[ID]*record)
	}
	shown := make([]Change, 0, len(changes))
	for _, c := range changes {
		if c.Before != nil && c.Before.Fleet {
			delete(r.fleet.byName, c.Before.Name)
			for _, id := range c.Before.IDs() {
				if of := r.fleet.byID[id]; of != nil && of.name == c.Before.Name { // else the id has moved
					delete(r.fleet.byID, id)
				}
			}
		}
		if c.After == nil {
			shown = append(shown, Change{c.Before, r.client(c.Before.Name).whole()})
			continue
		}
		after := r.fleet.terms.record(c.After)
		r.fleet.byName[after.name] = after
		for _, id := range after.ids() {
			r.fleet.byID[id] = after
		}
		shown = append(shown, c)
	}
	return shown
}

// Text returns the client as the text of a client file. It holds the key: it is for files and bundles only.
func (c *Client) Text() []byte { return c.text() }

// ClientParser returns a function that parses the texts of client files, one after the other. Its errors quote no
// secret.
func ClientParser() func(name string, text []byte) (*Client, error) {
	q := newQuick(nil)
	return func(name string, text []byte) (*Client, error) {
		if err := service.ValidName(name); err != nil {
			return nil, err
		}
		if c := q.parse(strings.Clone(name), text); c != nil {
			return c.whole(), nil
		}
		return clientOf(name+Suffix, strings.Clone(name), text)
	}
}

// Text returns the gate keys as the text of a gate key file. It is for files and bundles only.
func (g Gates) Text() []byte { return g.text() }

// ParseGates parses what Text returns. Its errors name the file at path and quote no secret.
func ParseGates(path string, text []byte) (Gates, error) { return parseGates(path, text) }
