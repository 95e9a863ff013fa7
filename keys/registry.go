package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// A Registry is the clients of a server, by id. It is safe for concurrent use.
type Registry struct {
	folder  place.Folder // its root is opened once: Reload works whatever is given up later
	loading sync.Mutex   // one file at a time is read, so that an older reading never wins
	terms   pool         // of files that are read one at a time

	mu       sync.RWMutex
	byID     map[ID]*record
	byName   map[string]*record
	refused  map[string]*record // by name: whole files that do not count because another has their id
	mistaken map[string]*record // by name: the ids of files with a mistake, which open nothing
	bad      map[string]error   // by name: clients that are shut out, and what is wrong with their files
	fleet    fleetClients
}

// LoadRegistry reads all clients in a directory. Each bad file is an error in the list, and its client is shut out; the
// others are loaded. Of files with the same id one counts, see copies.go. The Registry is never nil.
//
// Only NAME.toml is a client. Files that editors leave (dot files, NAME~, .swp, .tmp) are ignored; any other name is an
// error, because someone may take it for a client.
func LoadRegistry(dir string) (*Registry, []error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return &Registry{folder: place.Folder{Path: dir}}, []error{fmt.Errorf("reading the clients: %w", err)}
	}
	return LoadRegistryIn(root, dir)
}

// LoadRegistryIn is LoadRegistry for a directory that was opened earlier, at the path dir. It keeps root.
func LoadRegistryIn(root *os.Root, dir string) (*Registry, []error) {
	r := &Registry{folder: place.Folder{Path: dir, Root: root}.Named()}
	return r, r.load()
}

// load reads all files in the directory.
func (r *Registry) load() []error {
	names, errs := r.files()
	clients, bad := r.readAll(names)
	r.byID, r.byName = make(map[ID]*record, len(names)), make(map[string]*record, len(names))
	r.refused, r.mistaken, r.bad = make(map[string]*record), make(map[string]*record), make(map[string]error)
	whole := make([]*record, 0, len(clients))
	for i, c := range clients {
		if bad[i] == nil {
			whole = append(whole, c)
			continue
		}
		errs = append(errs, bad[i])
		r.bad[names[i]] = bad[i]
		if m, ok := errors.AsType[mistake](bad[i]); ok {
			r.mistaken[names[i]] = m.claims
			whole = append(whole, m.claims)
		}
	}
	copies := r.admit(whole)
	for _, name := range slices.Sorted(maps.Keys(copies)) {
		errs = append(errs, copies[name])
		r.bad[name] = copies[name]
	}
	return errs
}

// files lists the clients in the directory, sorted.
func (r *Registry) files() ([]string, []error) {
	d, err := r.folder.Root.Open(".")
	if err != nil {
		return nil, []error{fmt.Errorf("reading the clients: %w", err)}
	}
	defer d.Close()
	files, err := d.Readdirnames(-1)
	if err != nil {
		return nil, []error{fmt.Errorf("reading the clients: %w", err)}
	}
	var errs []error
	names := files[:0]
	slices.Sort(files)
	for _, file := range files {
		name, ok := strings.CutSuffix(file, Suffix)
		switch {
		case dropping(file):
		case !ok || service.ValidName(name) != nil:
			errs = append(errs, misnamed(filepath.Join(r.folder.Path, file)))
		default:
			names = append(names, strings.Clone(name)) // see fileName
		}
	}
	return names, errs
}

// dropping reports whether editors or writers leave such a file beside the real one. Vim creates "4913" to see whether
// it can.
func dropping(file string) bool {
	for _, suffix := range []string{"~", ".swp", ".swo", ".swx", ".tmp"} {
		if strings.HasSuffix(file, suffix) {
			return true
		}
	}
	return file[0] == '.' || file[0] == '#' || file == "4913"
}

// readAll reads the named clients on all processors. Clients and errors are in the order of the names; each name has
// one of the two.
func (r *Registry) readAll(names []string) ([]*record, []error) {
	clients, errs := make([]*record, len(names)), make([]error, len(names))
	workers := min(runtime.GOMAXPROCS(0), len(names))
	files := r.folder.ReadMany()
	defer files.Close()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			q, terms := newQuick(files), new(pool)
			for i := w; i < len(names); i += workers {
				if clients[i] = q.read(names[i]); clients[i] == nil {
					clients[i], errs[i] = r.read(names[i], q.schema, terms)
				}
			}
		})
	}
	wg.Wait()
	return clients, errs
}

func (r *Registry) add(c *record) {
	r.byName[c.name] = c
	for _, id := range c.ids() {
		r.byID[id] = c
	}
}

func (r *Registry) remove(c *record) {
	delete(r.byName, c.name)
	for _, id := range c.ids() {
		delete(r.byID, id)
	}
}

func (r *Registry) path(name string) string { return filepath.Join(r.folder.Path, name+Suffix) }

// Names lists the clients that have a file now and those that had one when it was last read, sorted. Its error joins
// what is wrong with other files.
func (r *Registry) Names() ([]string, error) {
	names, errs := r.files()
	r.mu.RLock()
	names = slices.AppendSeq(names, maps.Keys(r.byName))
	names = slices.AppendSeq(names, maps.Keys(r.refused))
	names = slices.AppendSeq(names, maps.Keys(r.bad))
	r.mu.RUnlock() // see Clients
	slices.Sort(names)
	return slices.Compact(names), errors.Join(errs...)
}

// Reload reads one client's file again and returns what changes: this client, and others that have an id in common with
// it. If the file is bad or missing, nothing changes and that is the error: it may just be being written. If the client
// is refused because of another with its id, that is the error. See Shut.
func (r *Registry) Reload(name string) ([]Change, error) {
	if err := service.ValidName(name); err != nil {
		return nil, err // including a name that leads out of the directory
	}
	r.loading.Lock()
	defer r.loading.Unlock()
	c, err := r.read(name, strict.Schema{}, &r.terms)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	changes, why := r.replace(name, c, nil)
	changes = r.visible(changes)
	if why[name] != nil {
		return changes, why[name]
	}
	delete(r.bad, name)
	return changes, nil
}

// Shut removes a client because its file is bad or missing, or because another has its id, and returns what changes.
// The reason is the error of Reload; Bad returns it until the file is mended.
func (r *Registry) Shut(name string, why error) []Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	var changes []Change
	if _, copied := errors.AsType[claimed](why); !copied {
		m, _ := errors.AsType[mistake](why)
		changes, _ = r.replace(name, nil, m.claims)
		changes = r.visible(changes)
	}
	delete(r.bad, name)
	if !errors.Is(why, fs.ErrNotExist) {
		r.bad[name] = why
	}
	return changes
}

// Close closes the directory. The clients stay loaded.
func (r *Registry) Close() error {
	if r.folder.Root == nil {
		return nil
	}
	return r.folder.Root.Close()
}

// Bad returns the clients that are shut out for what is wrong with their files, by name.
func (r *Registry) Bad() map[string]error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return maps.Clone(r.bad)
}

// Lookup returns the credential with this id: one map access, no allocation. It returns revoked and expired clients
// too: they are refused after the MAC was checked.
func (r *Registry) Lookup(id ID) (Credential, bool) {
	r.mu.RLock()
	c := r.lookup(id)
	r.mu.RUnlock()
	if c == nil {
		return Credential{}, false
	}
	if p := c.previous(); p != nil && p.ID == id {
		return Credential{Client: c.client(), ID: id, Key: p.Key, Until: p.Until}, true
	}
	return Credential{Client: c.client(), ID: id, Key: c.key}, true
}

// Client returns the client of this name.
func (r *Registry) Client(name string) (*Client, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	c := r.client(name)
	return c.whole(), c != nil
}

// Len returns the number of clients, including revoked ones.
func (r *Registry) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := len(r.fleet.byName)
	if r.fleet.alone {
		return n
	}
	for name := range r.byName {
		if r.fleet.byName[name] == nil {
			n++
		}
	}
	return n
}

// Clients returns all clients, sorted by name. For many of them All takes less memory.
func (r *Registry) Clients() []*Client {
	records := r.records()
	clients := make([]*Client, len(records))
	for i, c := range records {
		clients[i] = c.whole()
	}
	return clients
}

// All yields all clients, sorted by name.
func (r *Registry) All() iter.Seq[Client] {
	return func(yield func(Client) bool) {
		for _, c := range r.records() {
			if !yield(c.client()) {
				return
			}
		}
	}
}

// records returns the records of all clients, sorted by name.
func (r *Registry) records() []*record {
	r.mu.RLock()
	records := make([]*record, 0, len(r.byName)+len(r.fleet.byName))
	records = slices.AppendSeq(records, maps.Values(r.fleet.byName))
	if !r.fleet.alone {
		for name, c := range r.byName {
			if r.fleet.byName[name] == nil {
				records = append(records, c)
			}
		}
	}
	r.mu.RUnlock() // sorting takes longer than all else: a change would wait, and Lookup for the change
	slices.SortFunc(records, byName)
	return records
}

func byName(a, b *record) int { return strings.Compare(a.name, b.name) }
