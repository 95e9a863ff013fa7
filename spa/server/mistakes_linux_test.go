package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// versions are possible contents of a client's file.
var versions = []func(c *keys.Client){
	func(*keys.Client) {},
	func(c *keys.Client) { c.Allow = []string{"ssh", "web"} },
	func(c *keys.Client) { c.Allow = []string{"web"} },
	func(c *keys.Client) { c.From = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} },
	func(c *keys.Client) { c.From = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} },
	func(c *keys.Client) { c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32")} },
	func(c *keys.Client) { c.Expires = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) },
	func(c *keys.Client) { c.MaxFor = time.Minute },
	func(c *keys.Client) { c.RequireSource = true },
	func(c *keys.Client) { c.Revoked = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) },
}

// mistakes are changes that may happen at one byte of a text.
var mistakes = map[string]func(text string, at int) string{
	"a letter too many": func(text string, at int) string { return text[:at] + "x" + text[at:] },
	"a byte is missing": func(text string, at int) string { return text[:at] + text[at+1:] },
	"another byte":      func(text string, at int) string { return text[:at] + "]" + text[at+1:] },
	"cut off":           func(text string, at int) string { return text[:at] },
	"a line too many": func(text string, at int) string {
		return text[:at] + "\nexprires = 2020-01-01T00:00:00Z\n" +
			text[at:]
	},
}

// editing is a client and its file, which the test changes.
type editing struct {
	*bench
	client keys.Client
	path   string
	sender spa.Sender
}

// edit makes a client with those terms and opens everything that they allow.
func (b *bench) edit(name string, terms func(c *keys.Client)) *editing {
	b.Helper()
	e := &editing{bench: b, path: filepath.Join(b.s.clientsDir(), name+keys.Suffix), sender: b.sender}
	e.client = keys.Client{Name: name, ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
	e.sender.ID, e.sender.Key = e.client.ID, e.client.Key
	c := e.client
	terms(&c)
	lab.Must(b, keys.WriteClient(b.s.clientsDir(), &c, true))
	lab.Must(b, b.s.reloadClient(b.Context(), name))
	e.knock()
	return e
}

// knock requests every service.
func (e *editing) knock() {
	e.Helper()
	for _, name := range []string{"ssh", "web"} {
		packet, err := spa.Seal(spa.Request{
			ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now(), For: 10 * time.Minute,
			Services: []service.Service{{Name: name}},
		}, e.sender)
		lab.Must(e, err)
		e.s.process(context.Background(), arriving(packet))
	}
}

// put writes another text to the file, and waits until the server accepts it.
func (e *editing) put(text string) {
	e.Helper()
	lab.Must(e, os.WriteFile(e.path, []byte(text), 0o640))
	waiting := make(unsettled)
	waiting.note(e.client.Name, e.s.reloadClient(e.Context(), e.client.Name), time.Now().Add(-2*settles))
	e.s.settle(e.Context(), waiting)
	if len(waiting) > 0 {
		e.Errorf("%v waits still", waiting) // and would keep the server awake
	}
}

func (e *editing) held() []firewall.Grant { return e.s.firewall.GrantsOf(e.client.Name, time.Now()) }

// wantNoMore checks that only grants are open which the new file allows, and before a knock only those from before.
func (e *editing) wantNoMore(before []firewall.Grant, after *keys.Client, where string) {
	e.Helper()
	left := e.held()
	e.knock()
	for _, g := range append(e.held(), left...) {
		if !e.s.policy.Keeps(after, g, time.Now()) {
			e.Errorf("%s is open after %s", g.Service, where)
		}
	}
	for _, g := range left {
		if !slices.ContainsFunc(before, func(h firewall.Grant) bool {
			return h.Service == g.Service && !h.Until.Before(g.Until)
		}) {
			e.Errorf("%s came open by %s", g.Service, where)
		}
	}
}

// TestMistakesOpenNothing: after an edit of a client's file, with a mistake at any byte, only grants that both the old
// and the new file allow stay open. An unreadable file allows nothing.
func TestMistakesOpenNothing(t *testing.T) {
	b := newSite(t, func(string) {})
	b.rewrite("[service.ssh]", "[service.web]\nports = [\"tcp/80\"]\n\n[service.ssh]")
	_, err := b.s.reload(t.Context())
	lab.Must(t, err)
	random := rand.New(rand.NewPCG(1, 2))
	bad, good, n := 0, 0, 0
	for i, old := range versions {
		for j, next := range versions {
			for what, mistake := range mistakes {
				n++
				e := b.edit(fmt.Sprintf("c%d", n), old)
				before := e.held()
				if allowed := []int{1, 2, 1, 1, 0, 0, 0, 1, 1, 0}[i]; len(before) > allowed {
					t.Fatalf("version %d: %d grants, want %d", i, len(before), allowed)
				}
				c := e.client
				next(&c)
				text := written(t, &c)
				at := random.IntN(len(text))
				text = mistake(text, at)
				e.put(text)
				after, err := keys.ReadClient(e.path)
				where := fmt.Sprintf("version %d to %d, %s at byte %d (%v):\n%s", i, j, what, at, err, text)
				e.wantNoMore(before, after, where)
				if _, out := b.s.clients.Bad()[e.client.Name]; out != (err != nil) {
					t.Errorf("left out %v after %s", out, where)
				}
				if err != nil {
					bad++
					if len(e.held()) > 0 {
						t.Errorf("open after %s", where)
					}
				} else {
					good++
				}
				lab.Must(t, os.Remove(e.path))
				b.s.shutOut(t.Context(), e.client.Name, os.ErrNotExist)
				if len(e.held()) > 0 || len(b.s.leftOut()) > 0 {
					t.Errorf("removed, and open or left out, after %s", where)
				}
			}
		}
	}
	if bad < n/4 || good < n/20 {
		t.Errorf("of %d edits %d are mistakes and %d are none: the test does not see both", n, bad, good)
	}
}

// written returns a client's file.
func written(t *testing.T, c *keys.Client) string {
	t.Helper()
	dir := t.TempDir()
	lab.Must(t, keys.WriteClient(dir, c, true))
	text := lab.Value(os.ReadFile(filepath.Join(dir, c.Name+keys.Suffix)))(t)
	return string(text)
}

// TestUnsettled: a file that is bad or missing for a moment shuts no client out; if it stays so, its client is shut
// out.
func TestUnsettled(t *testing.T) {
	b := newSite(t, func(string) {})
	lab.Must(t, b.s.openWatcher())
	e := b.edit("bob", versions[0])
	text := lab.Value(os.ReadFile(e.path))(t)
	for name, step := range map[string]func() error{
		"emptied": func() error { return os.WriteFile(e.path, nil, 0o640) },
		"half":    func() error { return os.WriteFile(e.path, text[:len(text)/2], 0o640) },
		"gone":    func() error { return os.Remove(e.path) },
		"moved":   func() error { return os.Rename(e.path, e.path+"~") },
		"exposed": func() error { return os.Chmod(e.path, 0o666) },
	} {
		waiting := make(unsettled)
		now := time.Now()
		for i := range 3 { // each step is an event, and none delays the end
			if err := step(); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			waiting.note("bob", b.s.reloadClient(t.Context(), "bob"), now.Add(time.Duration(i)*settles/2))
		}
		b.s.settle(t.Context(), waiting)
		if len(e.held()) != 1 || len(waiting) != 1 || !waiting["bob"].Equal(now.Add(settles)) {
			t.Fatalf("%s: %d grants and %v, want bob's to wait", name, len(e.held()), waiting)
		}
		lab.Must(t, errors.Join(os.WriteFile(e.path, text, 0o640), os.Chmod(e.path, 0o640), handToGroup(e.path)))
		waiting.note("bob", b.s.reloadClient(t.Context(), "bob"), now)
		if len(e.held()) != 1 || len(waiting) != 0 {
			t.Fatalf("%s and written: %d grants and %v, want bob's", name, len(e.held()), waiting)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.s.watchClients(ctx) }()
	lab.Must(t, os.WriteFile(e.path, append(text, "exprires = 5\n"...), 0o640))
	lab.Eventually(t, "bob to be shut out", func() bool { return len(e.held()) == 0 })
	e.knock()
	if out := b.s.leftOut(); len(e.held()) > 0 || len(out) != 1 || out[0].Client != "bob" ||
		!strings.Contains(out[0].Why, "exprires") {
		t.Errorf("bob has %v, and %v is left out", e.held(), out)
	}
	lab.Must(t, os.WriteFile(e.path, text, 0o640))
	lab.Eventually(t, "bob to be let in again", func() bool { return len(b.s.leftOut()) == 0 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRenamedClient: a renamed file is a client of the new name once the old file is gone, in whichever order the
// server sees both.
func TestRenamedClient(t *testing.T) {
	b := newSite(t, func(string) {})
	for n := range 20 {
		e := b.edit(fmt.Sprintf("c%d", n), versions[0])
		next := fmt.Sprintf("d%d", n)
		lab.Must(t, os.Rename(e.path, filepath.Join(b.s.clientsDir(), next+keys.Suffix)))
		waiting := make(unsettled)
		for _, name := range []string{next, e.client.Name} {
			waiting.note(name, b.s.reloadClient(t.Context(), name), time.Now())
		}
		waiting.over()
		b.s.settle(t.Context(), waiting)
		_, was := b.s.clients.Client(e.client.Name)
		if _, is := b.s.clients.Client(next); was || !is || len(b.s.leftOut()) > 0 {
			t.Fatalf("the old name is known: %v, the new one: %v; left out: %v", was, is, b.s.leftOut())
		}
	}
}

// handToGroup gives a new file to its directory's group, the server's.
func handToGroup(path string) error {
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	return os.Chown(path, -1, int(info.Sys().(*syscall.Stat_t).Gid))
}
