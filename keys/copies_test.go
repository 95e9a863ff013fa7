package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// A shelf is a directory of client files and a registry that learns of each change.
type shelf struct {
	*testing.T
	dir     string
	r       *Registry
	wrote   map[string]*Client // what the files say, even if they have a mistake
	waiting map[string]bool    // clients whose files were bad or missing when they were last read
	story   []string
}

var copyNames = []string{"alice", "alice-old", "aaaaa", "zed", "bob"}

// step does one thing to a file. A removed file's place may be taken by another.
func (s *shelf) step(rng *rand.Rand) (touched []string) {
	name, other := copyNames[rng.IntN(len(copyNames))], copyNames[rng.IntN(len(copyNames))]
	path := func(name string) string { return filepath.Join(s.dir, name+Suffix) }
	do := rng.IntN(5)
	s.story = append(s.story, fmt.Sprint(do, " ", name, " ", other))
	switch do {
	case 0, 1: // one of a few keys, rotated or not, revoked or not
		c := client(name, ID(1+rng.IntN(3)))
		if rng.IntN(3) == 0 {
			c.Previous = &Previous{ID: ID(1 + (int(c.ID)+rng.IntN(2))%3), Key: NewKey(), Until: time.Unix(9, 0)}
		}
		if rng.IntN(3) == 0 {
			c.Revoked = time.Unix(1, 0)
		}
		put(s.T, s.dir, c)
		s.wrote[name] = c
		if rng.IntN(4) == 0 {
			s.spoil(path(name))
		}
	case 2:
		os.Remove(path(name))
		delete(s.wrote, name)
	case 3:
		if os.Rename(path(name), path(other)) == nil && name != other {
			s.wrote[other] = s.wrote[name]
			delete(s.wrote, name)
		}
		return []string{other, name}
	case 4:
		if rng.IntN(2) == 0 && s.wrote[name] != nil {
			s.spoil(path(name))
		} else if err := os.WriteFile(path(name), []byte("x"), 0o600); err != nil {
			s.Fatal(err)
		} else {
			delete(s.wrote, name)
		}
	}
	return []string{name}
}

// spoil makes a mistake in a file.
func (s *shelf) spoil(path string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("x = 1\n")
		f.Close()
	}
	lab.Must(s, err)
}

// tell makes the registry read a file again.
func (s *shelf) tell(name string) {
	changes, err := s.r.Reload(name)
	s.waiting[name] = err != nil
	s.follows(changes)
}

// settle shuts out those whose files stayed bad or missing.
func (s *shelf) settle() {
	for _, name := range slices.Sorted(maps.Keys(s.waiting)) {
		changes, err := s.r.Reload(name)
		s.follows(changes)
		if err != nil {
			s.follows(s.r.Shut(name, err))
		}
	}
	clear(s.waiting)
	s.keepsMistaken()
}

// keepsMistaken: clients that a file with a mistake would have shut out are shut out.
func (s *shelf) keepsMistaken() {
	s.Helper()
	for name, c := range s.wrote {
		if _, err := ReadClient(filepath.Join(s.dir, name+Suffix)); err == nil || c == nil || c.Revoked.IsZero() {
			continue
		}
		for _, id := range c.IDs() {
			if got, ok := s.r.Lookup(id); ok && got.Client.Revoked.IsZero() {
				s.Errorf("%q: %v of %s, which is revoked and has a mistake, opens for %s", s.story, id, name, got.Client.Name)
			}
		}
	}
}

func (s *shelf) follows(changes []Change) {
	for _, c := range changes {
		name := ""
		if c.Before != nil {
			name = c.Before.Name
		} else if c.After != nil {
			name = c.After.Name
		}
		if is, _ := s.r.Client(name); !is.Same(c.After) {
			s.Errorf("%q: the change of %q is not what the registry holds", s.story, name)
		}
	}
}

// lawful: no key of a revoked file opens anything, whatever else has it.
func (s *shelf) lawful() {
	s.Helper()
	for _, name := range copyNames {
		c, err := ReadClient(filepath.Join(s.dir, name+Suffix))
		if err != nil || c.Revoked.IsZero() {
			continue
		}
		for _, id := range c.IDs() {
			if got, ok := s.r.Lookup(id); ok && got.Client.Revoked.IsZero() {
				s.Errorf("%q: %v of %s, which is revoked, opens for %s", s.story, id, name, got.Client.Name)
			}
		}
	}
}

// same: the registry holds the same as one that is loaded now.
func (s *shelf) same() {
	s.Helper()
	fresh, _ := LoadRegistry(s.dir)
	defer fresh.Close()
	for id := ID(1); id <= 3; id++ {
		got, ok := s.r.Lookup(id)
		want, wanted := fresh.Lookup(id)
		if ok != wanted || ok && (got.Client.Name != want.Client.Name || !got.Client.Same(&want.Client)) {
			s.Errorf("%q: %v is of %v, and after a restart of %v", s.story, id, got.Client, want.Client)
		}
	}
	texts := func(r *Registry) map[string]string {
		m := make(map[string]string)
		for name, err := range r.Bad() {
			m[name] = err.Error()
		}
		return m
	}
	if got, want := texts(s.r), texts(fresh); !maps.Equal(got, want) {
		s.Errorf("%q: bad are %v, and after a restart %v", s.story, got, want)
	}
	if got, want := len(s.r.Clients()), len(fresh.Clients()); got != want {
		s.Errorf("%q: %d clients, and after a restart %d", s.story, got, want)
	}
}

// TestCopiesWhileRunning: if one of several files with one id is revoked, none opens anything; and the running registry
// holds what a new one would, in whatever order files were written, removed, renamed, broken and repaired, and seen.
func TestCopiesWhileRunning(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		s := &shelf{T: t, dir: t.TempDir(), wrote: make(map[string]*Client), waiting: make(map[string]bool)}
		for range rng.IntN(4) {
			s.step(rng)
		}
		s.r, _ = LoadRegistry(s.dir)
		for range 8 {
			touched := s.step(rng)
			rng.Shuffle(len(touched), func(i, j int) { touched[i], touched[j] = touched[j], touched[i] })
			for _, name := range touched {
				s.tell(name)
			}
			s.lawful()
			if rng.IntN(2) == 0 {
				s.settle()
				s.same()
			}
		}
		s.settle()
		s.same()
		s.r.Close()
		if t.Failed() {
			return
		}
	}
}

// TestOriginalGoesOn: a copy of a client's file beside it changes nothing, unless one of the two is revoked.
func TestOriginalGoesOn(t *testing.T) {
	for _, name := range []string{"alice-old", "alice2", "old-alice", "copy-of-alice"} {
		dir := t.TempDir()
		put(t, dir, client("alice", 1))
		r := load(t, dir)
		defer r.Close()
		was, _ := r.Client("alice")
		put(t, dir, client(name, 1))
		if changes, err := r.Reload(name); len(changes) > 0 || err == nil {
			t.Errorf("%s: %v, %v", name, changes, err)
		}
		if is, _ := r.Client("alice"); !is.Same(was) {
			t.Errorf("%s: alice is another", name)
		}
		c := client(name, 1)
		c.Revoked = time.Unix(1, 0)
		put(t, dir, c)
		if changes, err := r.Reload(name); len(changes) != 2 || err != nil || r.Bad()["alice"] == nil {
			t.Errorf("%s revoked: %v, %v", name, changes, err)
		}
		lab.Must(t, os.Remove(filepath.Join(dir, name+Suffix)))
		_, gone := r.Reload(name)
		if !errors.Is(gone, fs.ErrNotExist) {
			t.Fatal(gone)
		}
		if changes := r.Shut(name, gone); len(changes) != 2 || len(r.Bad()) > 0 {
			t.Errorf("%s removed: %v, bad are %v", name, changes, r.Bad())
		}
	}
}

// TestMistakenBesideACopy: a client whose file gets a mistake is shut out, even if a copy of the file is beside it; a
// copy with a mistake shuts out no client.
func TestMistakenBesideACopy(t *testing.T) {
	for name, want := range map[string]bool{"alice": false, "alice-old": true} {
		dir := t.TempDir()
		put(t, dir, client("alice", 1))
		put(t, dir, client("alice-old", 1))
		r, _ := LoadRegistry(dir)
		defer r.Close()
		s := &shelf{T: t, dir: dir, r: r, waiting: make(map[string]bool)}
		s.spoil(filepath.Join(dir, name+Suffix))
		s.tell(name)
		s.settle()
		s.same()
		if _, ok := r.Lookup(1); ok != want {
			t.Errorf("a mistake in %s: the key is known: %v", name, ok)
		}
		put(t, dir, client(name, 1))
		s.tell(name)
		s.settle()
		s.same()
		if got, ok := r.Lookup(1); !ok || got.Client.Name != "alice" {
			t.Errorf("mended: %v", got)
		}
	}
}

// TestRevokedAndSpoiled: however a revoked file is spoiled, as long as its id can be read no copy of it counts.
func TestRevokedAndSpoiled(t *testing.T) {
	for name, spoil := range map[string]func(text string) string{
		"readable to all": func(s string) string { return s }, // see below
		"a mistake":       func(s string) string { return s + "nonsense = 1\n" },
		"a key in quotes": func(s string) string { return strings.Replace(s, "id =", `"id" =`, 1) + "x" },
		"a value in three quotes": func(s string) string {
			return regexp.MustCompile(`id = "([0-9a-f]+)"`).ReplaceAllString(s, `id = """$1"""`) + "x"
		},
		"no line end before revoked": func(s string) string {
			return regexp.MustCompile("revoked = .*\n").ReplaceAllString(s, "") + "x = 1 revoked = 2"
		},
	} {
		dir := t.TempDir()
		alice := client("alice2", 1) // so that alice counts but for the revocation
		alice.Revoked = time.Unix(9, 0)
		put(t, dir, alice)
		put(t, dir, client("alice", 1))
		path := filepath.Join(dir, "alice2.toml")
		text := lab.Value(os.ReadFile(path))(t)
		mode := os.FileMode(0o600)
		if name == "readable to all" {
			mode = 0o644
		}
		lab.Must(t, errors.Join(os.WriteFile(path, []byte(spoil(string(text))), mode), os.Chmod(path, mode)))
		r, errs := LoadRegistry(dir)
		if got, ok := r.Lookup(1); ok && got.Client.Revoked.IsZero() {
			t.Errorf("%s: the key is %s's: %v", name, got.Client.Name, errs)
		}
		r.Close()
	}
}
