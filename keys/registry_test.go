package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// put writes a client file unchecked, over whatever was there.
func put(t *testing.T, dir string, c *Client) {
	t.Helper()
	lab.Must(t, place.Write(filepath.Join(dir, c.Name+Suffix), c.text(), place.EitherWay, place.ForService))
}

func client(name string, id ID) *Client {
	return &Client{Name: name, ID: id, Key: NewKey(), Allow: []string{"ssh"}}
}

func load(t *testing.T, dir string) *Registry {
	t.Helper()
	r, errs := LoadRegistry(dir)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return r
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	alice, bob := client("alice", 1), client("bob", 2)
	alice.Previous = &Previous{ID: 11, Key: NewKey(), Until: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	bob.Revoked, bob.Expires = time.Unix(1, 0).UTC(), time.Unix(2, 0).UTC()
	put(t, dir, alice)
	put(t, dir, bob)
	r := load(t, dir)
	for id, want := range map[ID]Credential{
		1:  {Client: *alice, ID: 1, Key: alice.Key},
		11: {Client: *alice, ID: 11, Key: alice.Previous.Key, Until: alice.Previous.Until},
		2:  {Client: *bob, ID: 2, Key: bob.Key},
	} {
		got, ok := r.Lookup(id)
		if !ok || !sameClient(&got.Client, &want.Client) || got.ID != want.ID || !got.Key.Equal(want.Key) ||
			!got.Until.Equal(want.Until) {
			t.Errorf("%v: got %+v, want %+v", id, got, want)
		}
	}
	if got, ok := r.Lookup(3); ok || got.Client.Name != "" || !got.Key.IsZero() {
		t.Errorf("an unknown id: got %v", got)
	}
	if n := testing.AllocsPerRun(100, func() { r.Lookup(11); r.Lookup(3) }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
	if all := r.Clients(); r.Len() != 2 || len(all) != 2 || all[0].Name != "alice" || all[1].Name != "bob" {
		t.Errorf("got %v", all)
	}
	if c, ok := r.Client("bob"); !ok || c.Name != "bob" || c.Revoked.IsZero() {
		t.Errorf("got %v", c)
	}
	if _, ok := r.Client("carol"); ok {
		t.Error("there is no carol")
	}
}

// holds fails unless one error of the list has all the words.
func holds(t *testing.T, errs []error, words ...string) {
	t.Helper()
	for _, err := range errs {
		found := true
		for _, w := range words {
			found = found && strings.Contains(err.Error(), w)
		}
		if found {
			return
		}
	}
	t.Errorf("got %v, want an error with %q", errs, words)
}

func TestLoadRegistryTellsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, client("alice", 1))
	put(t, dir, client("zoe", 9))
	for name, text := range map[string]string{
		"bad.toml": "version = 1\nid = 5\n", "README": "", "Carol.toml": clientText, "dave.toml.bak": clientText,
		".alice.toml.swp": "", "alice.toml~": "", "alice.swp": "", "x.tmp": "", "#alice.toml#": "", ".hidden": "", "4913": "",
	} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	r, errs := LoadRegistry(dir)
	holds(t, errs, "bad.toml:2: id")
	holds(t, errs, "README: is not named NAME.toml")
	holds(t, errs, "Carol.toml: is not named NAME.toml")
	holds(t, errs, "dave.toml.bak: is not named NAME.toml")
	if len(errs) != 4 || r.Len() != 2 {
		t.Errorf("got %d clients and %v", r.Len(), errs)
	}
	r, errs = LoadRegistry(filepath.Join(dir, "none"))
	if len(errs) != 1 || !errors.Is(errs[0], os.ErrNotExist) || r == nil || r.Len() != 0 {
		t.Errorf("got %v, %v, want an empty registry and an error", r, errs)
	}
	if _, ok := r.Lookup(1); ok {
		t.Error("found in an empty registry")
	}
}

// wantReload reads a client's file again and fails unless that changes its id like this, with an error that contains
// want.
func wantReload(t *testing.T, r *Registry, name string, before, after ID, want string) {
	t.Helper()
	b, _ := r.Client(name)
	changes, err := r.Reload(name)
	a, _ := r.Client(name)
	if len(changes) > 0 && !changes[0].same(Change{b, a}) || len(changes) > 1 || err == nil && len(changes) == 0 {
		t.Fatalf("%s: changes %v", name, changes)
	}
	if idOf(b) != before || idOf(a) != after || (err == nil) != (want == "") ||
		err != nil && !strings.Contains(err.Error(), want) {
		t.Fatalf("got %v, %v, %v, want %v, %v, %q", idOf(b), idOf(a), err, before, after, want)
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, client("alice", 1))
	r := load(t, dir)
	put(t, dir, client("bob", 2))
	wantReload(t, r, "bob", 0, 2, "")
	rotated := client("alice", 3)
	rotated.Previous = &Previous{ID: 1, Key: NewKey(), Until: time.Unix(9, 0)}
	put(t, dir, rotated)
	wantReload(t, r, "alice", 1, 3, "")
	if c, ok := r.Lookup(1); !ok || !c.Key.Equal(rotated.Previous.Key) {
		t.Error("the previous key is not found")
	}
	put(t, dir, client("alice", 3))
	wantReload(t, r, "alice", 3, 3, "")
	if _, ok := r.Lookup(1); ok {
		t.Error("the id of the previous key is found after it has gone")
	}
	lab.Must(t, os.WriteFile(filepath.Join(dir, "alice.toml"), []byte("version = 1\nx = 1\n"), 0o600))
	wantReload(t, r, "alice", 3, 3, "alice.toml:2: x: unknown key")
	if _, ok := r.Lookup(3); !ok || r.Len() != 2 {
		t.Error("a bad file changed something")
	}
	_, bad := r.Reload("alice")
	if c := r.Shut("alice", bad); len(c) != 1 || idOf(c[0].Before) != 3 || c[0].After != nil || r.Len() != 1 ||
		r.Bad()["alice"] != bad {
		t.Errorf("shut out %v, and %v is bad", c, r.Bad())
	}
	if _, ok := r.Lookup(3); ok {
		t.Error("a client that is shut out is found")
	}
	put(t, dir, client("alice", 3))
	wantReload(t, r, "alice", 0, 3, "")
	if len(r.Bad()) > 0 {
		t.Errorf("mended, and %v is bad", r.Bad())
	}
	lab.Must(t, os.Remove(filepath.Join(dir, "alice.toml")))
	wantReload(t, r, "alice", 3, 3, "no such file")
	_, gone := r.Reload("alice")
	if c := r.Shut("alice", gone); len(c) != 1 || idOf(c[0].Before) != 3 || r.Len() != 1 || len(r.Bad()) > 0 {
		t.Errorf("removed %v, and %v is bad", c, r.Bad())
	}
	if c := r.Shut("alice", gone); len(c) != 0 {
		t.Errorf("removed %v twice", c)
	}
	put(t, filepath.Dir(dir), client("mallory", 66))
	wantReload(t, r, "../mallory", 0, 0, "a name may contain")
}

// same reports whether two changes have equal clients.
func (c Change) same(other Change) bool {
	return c.Before.Same(other.Before) && c.After.Same(other.After)
}

func idOf(c *Client) ID {
	if c == nil {
		return 0
	}
	return c.ID
}

func TestDuplicateIDs(t *testing.T) {
	dir := t.TempDir()
	alice, bob, carol, aaron := client("alice", 1), client("robert", 1), client("carol", 3), client("aaron", 4)
	carol.Previous = &Previous{ID: 1, Key: NewKey(), Until: time.Unix(9, 0)}
	aaron.Previous = &Previous{ID: 5, Key: NewKey(), Until: time.Unix(9, 0)}
	for _, c := range []*Client{bob, aaron, carol, alice} {
		put(t, dir, c)
	}
	r, errs := LoadRegistry(dir)
	holds(t, errs, "robert.toml: id:", "alice.toml")
	holds(t, errs, "carol.toml: previous.id:", "alice.toml")
	if c, _ := r.Lookup(1); len(errs) != 2 || r.Len() != 2 || c.Client.Name != "alice" {
		t.Fatalf("got %v, %v", r.Clients(), errs)
	}
	if changes, err := r.Reload("robert"); err == nil || len(changes) > 0 {
		t.Fatal("robert is loaded beside alice")
	}
	put(t, dir, client("alice", 5)) // aaron's previous id
	if changes, err := r.Reload("alice"); err == nil || !strings.Contains(err.Error(), "aaron.toml") ||
		len(changes) != 2 ||
		changes[0].After != nil || changes[1].Before != nil || changes[1].After.Name != "carol" {
		t.Fatalf("got %v, %v", changes, err)
	}
	put(t, dir, client("alice", 6))
	_, err := r.Reload("alice")
	lab.Must(t, err)
	if got, ok := r.Lookup(1); !ok || got.Client.Name != "carol" || r.Len() != 3 {
		t.Fatalf("the duplicate has gone: got %v of %v", got, r.Clients())
	}
}

func TestRegistryConcurrently(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, client("alice", 1))
	r := load(t, dir)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 25 {
				name := fmt.Sprintf("c%d", i)
				put(t, dir, client(name, ID(10+i)))
				r.Reload(name)
				if c, ok := r.Lookup(1); !ok || c.Client.Name != "alice" {
					t.Error("alice is gone")
				}
				if n%2 == 1 {
					os.Remove(filepath.Join(dir, name+Suffix))
					_, gone := r.Reload(name)
					r.Shut(name, gone)
				}
				r.Clients()
			}
		})
	}
	wg.Wait()
	if r.Len() != 5 {
		t.Errorf("got %d clients, want 5", r.Len())
	}
}

// TestRevokedCopy: a copy of a client's file from before its revocation does not undo the revocation, whatever its
// name.
func TestRevokedCopy(t *testing.T) {
	for _, name := range []string{"aaa", "zzz"} {
		dir := t.TempDir()
		revoked, copied := client("mmm", 7), client(name, 7)
		revoked.Revoked = time.Unix(1, 0)
		put(t, dir, revoked)
		put(t, dir, copied)
		r, errs := LoadRegistry(dir)
		if c, ok := r.Lookup(7); !ok || c.Client.Revoked.IsZero() || len(errs) != 1 {
			t.Errorf("%s: found %v, %+v, errors %v", name, ok, c.Client, errs)
		}
	}
}
