package office_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/office"
	"sallyport/spa/lab"
)

// several is an office, and copies of it, for several administrators with one identity.
type several struct {
	me, gateway *age.HybridIdentity
	dir         string
	now         time.Time
}

// newSeveral makes an office with the client bob and the gateway web.
func newSeveral(t *testing.T) *several {
	s := &several{lab.Value(age.GenerateHybridIdentity())(t), lab.Value(age.GenerateHybridIdentity())(t), t.TempDir(),
		time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)}
	lab.Value(office.Create(s.dir, office.Settings{Name: "prod", Domain: "example.net", KnockPorts: []uint16{62201},
		Services: map[string][]string{"ssh": {"tcp/22"}}}, "anna", s.me.Recipient()))(t)
	s.change(t, s.dir, func(o *office.Office, v *office.Vault) error {
		_, err := o.AddGateway(fleet.Request{Name: "web", Address: "192.0.2.1", KnockPorts: []uint16{62201},
			Recipient: s.gateway.Recipient()}, office.Site{}, false)
		return errors.Join(err, o.NewClient(v, &keys.Terms{Client: keys.Client{Name: "bob", Allow: []string{"ssh"}}},
			func(*keys.Profile) error { return nil }))
	})
	return s
}

func (s *several) change(t *testing.T, dir string, change func(*office.Office, *office.Vault) error) {
	t.Helper()
	lab.Must(t, office.Change(dir, func(o *office.Office) error { return change(o, lab.Value(o.Unlock(s.me))(t)) }))
}

// publish publishes from an office, each time an hour later.
func (s *several) publish(t *testing.T, dir string, d office.Destination, over bool) (r *office.Report, err error) {
	t.Helper()
	s.now = s.now.Add(time.Hour)
	s.change(t, dir, func(o *office.Office, v *office.Vault) error {
		r, err = o.Publish(context.Background(), v, d, "bundles", over, s.now)
		return nil
	})
	return r, err
}

// clients returns the clients in the gateway's bundle that are not revoked.
func (s *several) clients(t *testing.T, d office.Directory) (names []string) {
	t.Helper()
	b := lab.Value(fleet.Parse(lab.Value(os.ReadFile(d.Where("web")))(t)))(t)
	for _, c := range lab.Value(fleet.Open(b, s.gateway))(t).Clients {
		if c.Revoked.IsZero() {
			names = append(names, c.Name)
		}
	}
	return names
}

// copied returns a copy of a directory.
func copied(t *testing.T, dir string) string {
	t.Helper()
	other := filepath.Join(t.TempDir(), "copy")
	lab.Must(t, os.CopyFS(other, os.DirFS(dir)))
	return other
}

// TestTwoPublishers: an administrator whose publish was refused or killed, while another one published with the same
// serial, does not undo what that one changed.
func TestTwoPublishers(t *testing.T) {
	s := newSeveral(t)
	store := office.Directory(t.TempDir())
	lab.Value(s.publish(t, s.dir, store, false))(t)
	carol := copied(t, s.dir)
	lab.Value(s.publish(t, carol, office.Directory(copied(t, string(store))), false))(t) // nothing of it came to the store
	s.change(t, s.dir, func(o *office.Office, _ *office.Vault) error { return o.RevokeClient("bob", s.now) })
	lab.Value(s.publish(t, s.dir, store, false))(t)

	if _, err := s.publish(t, carol, store, false); !errors.Is(err, office.ErrNewer) {
		t.Errorf("without the other's change: %v", err)
	}
	if names := s.clients(t, store); len(names) > 0 {
		t.Errorf("revoked, and back: %s", names)
	}
	o := lab.Value(office.Load(carol))(t)
	states := lab.Value(o.States(context.Background(), store, s.now, 24*time.Hour))(t)
	if states[0].State != office.Ahead {
		t.Errorf("state: %+v", states[0])
	}
	r, err := s.publish(t, carol, store, true)
	if err != nil || r.Serial != 3 || !r.Over {
		t.Errorf("over it: %+v, %v", r, err)
	}
}

// full is a destination that fills up after a number of bundles.
type full struct {
	office.Directory
	room int
}

var errFull = errors.New("full")

func (f full) Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error {
	return f.Directory.Put(ctx, after(bundles, f.room, func() error { return errFull }), known)
}

// after returns bundles, and does something after n of them, which may end in an error.
func after(bundles iter.Seq2[*fleet.Bundle, error], n int, do func() error) iter.Seq2[*fleet.Bundle, error] {
	return func(yield func(*fleet.Bundle, error) bool) {
		i := 0
		for b, err := range bundles {
			if i == n && err == nil {
				err = do()
			}
			if i++; !yield(b, err) {
				return
			}
		}
		if i == n {
			if err := do(); err != nil {
				yield(nil, err)
			}
		}
	}
}

// TestFailedPublishes: whatever number of an administrator's publishes failed, with or without a bundle put, none of
// them lets a later one undo what another administrator changed. Without such a change the next one goes on.
func TestFailedPublishes(t *testing.T) {
	for _, before := range []bool{false, true} { // something was published before
		for failed := range 4 {
			for room := range 2 {
				s := newSeveral(t)
				store := office.Directory(t.TempDir())
				if before {
					lab.Value(s.publish(t, s.dir, store, false))(t)
				}
				other := copied(t, s.dir)
				for range failed {
					if _, err := s.publish(t, s.dir, full{store, room}, false); !errors.Is(err, errFull) {
						t.Fatalf("a full destination: %v", err)
					}
				}
				alone := office.Directory(copied(t, string(store)))
				if _, err := s.publish(t, copied(t, s.dir), alone, false); err != nil {
					t.Errorf("after %d of its own that failed: %v", failed, err)
				}
				s.change(t, other, func(o *office.Office, _ *office.Vault) error { return o.RevokeClient("bob", s.now) })
				lab.Value(s.publish(t, other, store, true))(t)
				if _, err := s.publish(t, s.dir, store, false); !errors.Is(err, office.ErrNewer) {
					t.Errorf("after %d that failed with %d bundles put, over another's revocation: %v", failed, room, err)
				}
				if names := s.clients(t, store); len(names) > 0 {
					t.Errorf("after %d that failed, revoked and back: %s", failed, names)
				}
			}
		}
	}
}

// TestManyFailedPublishes: however many publishes fail, published.toml stays small, and the next one has a higher
// serial than all of them.
func TestManyFailedPublishes(t *testing.T) {
	s := newSeveral(t)
	store := office.Directory(t.TempDir())
	for range 60 {
		if _, err := s.publish(t, s.dir, full{store, 1}, false); !errors.Is(err, errFull) {
			t.Fatalf("a full destination: %v", err)
		}
	}
	if n := len(lab.Value(office.Load(s.dir))(t).Published.Unfinished); n != 50 {
		t.Errorf("%d are kept", n)
	}
	if r, err := s.publish(t, s.dir, store, false); err != nil || r.Serial != 61 {
		t.Errorf("the next one: %+v, %v", r, err)
	}
}

// TestRevokedStays: a bundle has a revoked client, revoked, so that no file of that name counts again.
func TestRevokedStays(t *testing.T) {
	s := newSeveral(t)
	store := office.Directory(t.TempDir())
	s.change(t, s.dir, func(o *office.Office, _ *office.Vault) error { return o.RevokeClient("bob", s.now) })
	lab.Value(s.publish(t, s.dir, store, false))(t)
	b := lab.Value(fleet.Parse(lab.Value(os.ReadFile(store.Where("web")))(t)))(t)
	clients := lab.Value(fleet.Open(b, s.gateway))(t).Clients
	if len(clients) != 1 || clients[0].Name != "bob" || clients[0].Revoked.IsZero() {
		t.Errorf("clients: %v", clients)
	}
}

// TestReceipts: clients learn whether the gateways answer.
func TestReceipts(t *testing.T) {
	for _, receipts := range []bool{false, true} {
		dir, me := t.TempDir(), lab.Value(age.GenerateHybridIdentity())(t)
		lab.Value(office.Create(dir, office.Settings{Name: "prod", Domain: "example.net", KnockPorts: []uint16{62201},
			Receipts: receipts, Services: map[string][]string{"ssh": {"tcp/22"}}}, "anna", me.Recipient()))(t)
		lab.Must(t, office.Change(dir, func(o *office.Office) error {
			bob := &keys.Terms{Client: keys.Client{Name: "bob", Allow: []string{"ssh"}}}
			return o.NewClient(lab.Value(o.Unlock(me))(t), bob, func(p *keys.Profile) error {
				if p.Receipts != receipts {
					t.Errorf("receipts = %t, and the token has %t", receipts, p.Receipts)
				}
				return nil
			})
		}))
	}
}

// TestVaultOfAnother: the vault of another office opens nothing here, even for an administrator of both.
func TestVaultOfAnother(t *testing.T) {
	s, other := newSeveral(t), newSeveral(t)
	both := lab.Value(age.GenerateHybridIdentity())(t)
	for _, house := range []*several{s, other} {
		house.change(t, house.dir, func(o *office.Office, v *office.Vault) error {
			return o.AddAdmin(v, "both", both.Recipient())
		})
	}
	vault := lab.Value(os.ReadFile(filepath.Join(other.dir, "vault.age")))(t)
	lab.Must(t, os.WriteFile(filepath.Join(s.dir, "vault.age"), vault, 0o600))
	if _, err := lab.Value(office.Load(s.dir))(t).Unlock(both); err == nil {
		t.Error("the vault of another office opens")
	}
}

// TestSerialOfReplacedKey: the serial of a bundle that is signed with a replaced key raises no later one.
func TestSerialOfReplacedKey(t *testing.T) {
	s := newSeveral(t)
	store := office.Directory(t.TempDir())
	lab.Value(s.publish(t, s.dir, store, false))(t)
	left := copied(t, s.dir)
	s.change(t, s.dir, func(o *office.Office, v *office.Vault) error {
		return o.RotateKey(v, func(ed25519.PublicKey) error { return nil })
	})

	path := filepath.Join(left, "published.toml")
	text := lab.Value(os.ReadFile(path))(t)
	text = regexp.MustCompile(`(?m)^serial = \d+$`).ReplaceAll(text,
		fmt.Appendf(nil, "serial = %d", int64(math.MaxInt64-5)))
	lab.Must(t, os.WriteFile(path, text, 0o600))
	lab.Value(s.publish(t, left, store, false))(t)

	if _, err := s.publish(t, s.dir, store, false); !errors.Is(err, office.ErrNewer) {
		t.Errorf("over a bundle with a replaced key: %v", err)
	}
	if r, err := s.publish(t, s.dir, store, true); err != nil || r.Serial != 2 {
		t.Errorf("with --over: %+v, %v", r, err)
	}
}

// open is a store in which anyone can write, and which refuses what etcd refuses.
type open struct {
	office.Directory
	serial int64
}

func (o open) Found(ctx context.Context) (map[string][]byte, error) {
	found, err := o.Directory.Found(ctx)
	found["\x1b]0;web\a"] = []byte("a title")
	return found, err
}

func (o open) Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error {
	if o.serial > known {
		return office.ErrNewer
	}
	return o.Directory.Put(ctx, bundles, known)
}

// TestOpenStore: whatever a store says is its serial, --over publishes; and the terminal is shown no name from it that
// is none.
func TestOpenStore(t *testing.T) {
	s := newSeveral(t)
	store := open{office.Directory(t.TempDir()), math.MaxInt64}
	if _, err := s.publish(t, s.dir, store, false); !errors.Is(err, office.ErrNewer) {
		t.Errorf("a higher serial: %v", err)
	}
	if o := lab.Value(office.Load(s.dir))(t); o.Published.Serial != 0 {
		t.Errorf("nothing was published, and the office has serial %d", o.Published.Serial)
	}
	r := lab.Value(s.publish(t, s.dir, store, true))(t)
	if names := s.clients(t, store.Directory); r.Serial != 1 || !slices.Equal(names, []string{"bob"}) {
		t.Errorf("with --over: serial %d, clients %s", r.Serial, names)
	}
	o := lab.Value(office.Load(s.dir))(t)
	for _, state := range lab.Value(o.States(context.Background(), store, s.now, time.Hour))(t) {
		if state.Gateway != "web" {
			t.Errorf("state: %+v", state)
		}
	}
}

// TestFoundInDirectory: what is read of a directory is the readable part of each whole bundle, however large the files
// are, and nothing of a damaged one.
func TestFoundInDirectory(t *testing.T) {
	s := newSeveral(t)
	d := office.Directory(t.TempDir())
	lab.Value(s.publish(t, s.dir, d, false))(t)
	whole := lab.Value(os.ReadFile(d.Where("web")))(t)
	lab.Must(t, os.WriteFile(d.Where("cut"), whole[:len(whole)-1], 0o644))
	for _, name := range []string{"large", "larger"} {
		lab.Must(t, os.WriteFile(d.Where(name), nil, 0o644))
		lab.Must(t, os.Truncate(d.Where(name), fleet.MaxFile))
	}
	want := string(lab.Value(fleet.Parse(whole))(t).Readable())
	for name, text := range lab.Value(d.Found(t.Context()))(t) {
		if name == "web" && string(text) != want || name != "web" && text != nil {
			t.Errorf("%s: %d bytes", name, len(text))
		}
	}
}

// TestNamesInPublished: published.toml, which others may write, has no name that could act on a terminal.
func TestNamesInPublished(t *testing.T) {
	s := newSeveral(t)
	d := office.Directory(t.TempDir())
	lab.Value(s.publish(t, s.dir, d, false))(t)
	path := filepath.Join(s.dir, "published.toml")
	good := string(lab.Value(os.ReadFile(path))(t))
	for was, is := range map[string]string{"by = \"anna": "by = \"anna\\u001b[2K", "\nweb = ": "\n\"web\\u001b[2K\" = ",
		"\nbob = ": "\n\"bob\\u001b[2K\" = "} {
		if !strings.Contains(good, was) {
			t.Fatalf("there is no %q in\n%s", was, good)
		}
		lab.Must(t, os.WriteFile(path, []byte(strings.Replace(good, was, is, 1)), 0o640))
		if o, err := office.Load(s.dir); err == nil || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v, %v", is, o, err)
		}
	}
}

// TestUnreadableTerms: terms that no gateway can read keep an office from publishing: gateways would refuse the bundle
// for all clients.
func TestUnreadableTerms(t *testing.T) {
	networks := make([]string, 2500)
	for i := range networks {
		networks[i] = fmt.Sprintf("\"2001:db8:%x:%x::/64\"", i/50+0x1000, i%50+0x1000)
	}
	for name, term := range map[string]string{
		"":                 "",
		"too long":         "from = [" + strings.Join(networks, ", ") + "]\n",
		"beyond the years": "expires = 9999-12-31T23:59:59-12:00\n",
	} {
		s := newSeveral(t)
		d := office.Directory(t.TempDir())
		path := filepath.Join(s.dir, "clients", "bob.toml")
		text := string(lab.Value(os.ReadFile(path))(t))
		lab.Must(t, os.WriteFile(path, []byte(text+term), 0o640))
		_, err := s.publish(t, s.dir, d, false)
		if there := lab.Value(d.Found(t.Context()))(t); (err != nil) != (name != "") || len(there) == 1 != (name == "") ||
			err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, and %d bundles", name, err, len(there))
		}
		if name == "" {
			b := lab.Value(fleet.Parse(lab.Value(os.ReadFile(d.Where("web")))(t)))(t)
			lab.Value(fleet.Open(b, s.gateway))(t)
		}
	}
}

// stopping is a destination that ends a context when it was read, or when it has this many bundles.
type stopping struct {
	office.Directory
	after int
	stop  context.CancelFunc
}

func (s stopping) Found(ctx context.Context) (map[string][]byte, error) {
	found, err := s.Directory.Found(ctx)
	if s.after == 0 {
		s.stop()
	}
	return found, err
}

func (s stopping) Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error {
	return s.Directory.Put(ctx, after(bundles, s.after, func() error { s.stop(); return nil }), known)
}

// TestInterrupted: an interrupted publish has changed nothing, or says that it began, and the next one has a higher
// serial.
func TestInterrupted(t *testing.T) {
	for after, next := range []int64{2, 3} {
		s := newSeveral(t)
		store := office.Directory(t.TempDir())
		s.change(t, s.dir, func(o *office.Office, _ *office.Vault) error {
			_, err := o.AddGateway(fleet.Request{Name: "a", Address: "192.0.2.2", KnockPorts: []uint16{62201},
				Recipient: lab.Value(age.GenerateHybridIdentity())(t).Recipient()}, office.Site{}, false)
			return err
		})
		lab.Value(s.publish(t, s.dir, store, false))(t)
		path := filepath.Join(s.dir, "published.toml")
		before := lab.Value(os.ReadFile(path))(t)
		ctx, cancel := context.WithCancel(t.Context())
		s.change(t, s.dir, func(o *office.Office, v *office.Vault) error {
			_, err := o.Publish(ctx, v, stopping{store, after, cancel}, "bundles", false, s.now)
			partial, began := errors.AsType[*office.Partial](err)
			if !errors.Is(err, context.Canceled) || began != (after > 0) || began && partial.Serial != 2 {
				t.Errorf("after %d bundles: %v", after, err)
			}
			return nil
		})
		if same := string(lab.Value(os.ReadFile(path))(t)) == string(before); same != (after == 0) {
			t.Errorf("after %d bundles, published.toml is as before: %t", after, same)
		}
		for name, want := range map[string]int64{"a": 1 + int64(after), "web": 1} {
			if b := lab.Value(fleet.Parse(lab.Value(os.ReadFile(store.Where(name)))(t)))(t); b.Serial != want {
				t.Errorf("after %d bundles, that of %s has serial %d", after, name, b.Serial)
			}
		}
		if r, err := s.publish(t, s.dir, store, false); err != nil || r.Serial != next {
			t.Errorf("after %d bundles, the next publish: %+v, %v", after, r, err)
		}
	}
}
