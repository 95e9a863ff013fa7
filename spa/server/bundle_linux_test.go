package server

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/lab"
	"sallyport/spa/server/setup"
)

// offers are files that a program may put in the place of a bundle with serial 7, and why each is refused.
var offers = map[string]struct {
	reason string
	put    func(p *fleetSite, good []byte, clients []*keys.Client)
}{
	"good": {"", func(p *fleetSite, good []byte, _ []*keys.Client) { p.offer(good) }},
	"of another office": {"signature", func(p *fleetSite, _ []byte, cs []*keys.Client) {
		_, key, _ := ed25519.GenerateKey(nil)
		p.offer(p.sealed(fleet.Seal{Fleet: p.seal.Fleet, Key: key}, "gw", p.to, 7, p.contents(cs)))
	}},
	"of another fleet": {"fleet", func(p *fleetSite, _ []byte, cs []*keys.Client) {
		p.offer(p.sealed(fleet.Seal{Fleet: keys.NewFleetID(), Key: p.seal.Key}, "gw", p.to, 7, p.contents(cs)))
	}},
	"for another gateway": {"gateway", func(p *fleetSite, _ []byte, cs []*keys.Client) {
		p.offer(p.sealed(p.seal, "web8", p.to, 7, p.contents(cs)))
	}},
	"to another key": {"sealed", func(p *fleetSite, _ []byte, cs []*keys.Client) {
		other := lab.Value(age.GenerateHybridIdentity())(p)
		p.offer(p.sealed(p.seal, "gw", other.Recipient(), 7, p.contents(cs)))
	}},
	"two clients with one key": {"contents", func(p *fleetSite, _ []byte, cs []*keys.Client) {
		twin := *cs[0]
		twin.Name = "twin"
		p.offer(p.bundle(7, append(cs, &twin)...))
	}},
	"a recovery key": {"contents", func(p *fleetSite, _ []byte, cs []*keys.Client) {
		c := *cs[0]
		c.Recovery = 3
		p.offer(p.bundle(7, &c))
	}},
	"cut":     {"format", func(p *fleetSite, good []byte, _ []*keys.Client) { p.offer(good[:len(good)-1]) }},
	"half":    {"format", func(p *fleetSite, good []byte, _ []*keys.Client) { p.offer(good[:len(good)/2]) }},
	"longer":  {"format", func(p *fleetSite, good []byte, _ []*keys.Client) { p.offer(append(bytes.Clone(good), 0)) }},
	"empty":   {"format", func(p *fleetSite, _ []byte, _ []*keys.Client) { p.offer(nil) }},
	"garbage": {"format", func(p *fleetSite, good []byte, _ []*keys.Client) { p.offer(make([]byte, len(good))) }},
	"a higher serial by hand": {"signature", func(p *fleetSite, good []byte, _ []*keys.Client) {
		p.offer(bytes.Replace(good, []byte("serial 7\n"), []byte("serial 8\n"), 1))
	}},
	"a directory": {"unreadable", func(p *fleetSite, _ []byte, _ []*keys.Client) {
		lab.Must(p, errors.Join(os.RemoveAll(p.path()), os.MkdirAll(filepath.Join(p.path(), "in"), 0o755)))
	}},
	"a FIFO": {"unreadable", func(p *fleetSite, _ []byte, _ []*keys.Client) {
		lab.Must(p, errors.Join(os.RemoveAll(p.path()), syscall.Mkfifo(p.path(), 0o644)))
	}},
	"a link": {"unreadable", func(p *fleetSite, good []byte, _ []*keys.Client) {
		p.offer(good)
		lab.Must(p, errors.Join(os.Rename(p.path(), p.path()+".real"), os.Symlink(p.path()+".real", p.path())))
	}},
	"huge": {"unreadable", func(p *fleetSite, good []byte, _ []*keys.Client) {
		p.offer(good)
		lab.Must(p, os.Truncate(p.path(), fleet.MaxFile+1))
	}},
	"none": {"", func(p *fleetSite, _ []byte, _ []*keys.Client) { lab.Must(p, os.RemoveAll(p.path())) }},
}

// TestOffers: whatever is offered in whatever state, the clients that can knock are those of the bundle with the
// highest serial that was good; what is refused is counted by its reason and logged once.
func TestOffers(t *testing.T) {
	before := []*keys.Client{fleetClient("ann"), fleetClient("bob")}
	after := []*keys.Client{fleetClient("bob"), fleetClient("carl"), fleetClient("dora")}
	for state, start := range map[string]func(p *fleetSite){
		"nothing yet": func(*fleetSite) {},
		"in force":    func(p *fleetSite) { p.offer(p.bundle(5, before...)); p.take(t) },
		"restarted":   func(p *fleetSite) { p.offer(p.bundle(5, before...)); p.take(t); p.restart() },
		"kept only": func(p *fleetSite) {
			p.offer(p.bundle(5, before...))
			p.take(t)
			lab.Must(t, os.Remove(p.path()))
			p.restart()
		},
	} {
		for what, offer := range offers {
			t.Run(state+"/"+what, func(t *testing.T) {
				p := newFleetSite(t, "")
				start(p)
				serial, in, out := int64(5), before, after
				if state == "nothing yet" {
					serial, in, out = 0, nil, append(slices.Clone(before), after...)
				}
				p.wantInForce("before", serial, in, out)
				offer.put(p, p.bundle(7, after...), after)
				for range 2 { // the second time it is known
					_, err := p.s.takeBundle(t.Context(), true)
					if (err != nil) != (offer.reason != "") {
						t.Errorf("got %v", err)
					}
				}
				if what == "good" {
					serial, in, out = 7, after, before
				}
				p.wantRefused(offer.reason)
				p.wantInForce("then", serial, in, out)
				p.restart()
				p.wantInForce("after a restart", serial, in, out)
			})
		}
	}
}

// wantRefused checks that one file was refused for this reason, and logged; none if it is empty.
func (p *fleetSite) wantRefused(reason string) {
	p.Helper()
	want := 0
	if reason != "" {
		want = 1
	}
	var total uint64
	st := p.s.fleetStatus(time.Now())
	for _, n := range st.Refused {
		total += n
	}
	if total != uint64(want) || reason != "" && (st.Refused[reason] != 1 || st.LastRefused.Reason != reason) {
		p.Errorf("refused: %v, and the last: %+v; want one for %q", st.Refused, st.LastRefused, reason)
	}
	if n := p.said.count("refused"); n != want {
		p.Errorf("the log has %d lines of refusals", n)
	}
}

// TestSerials offers bundles in any order, with restarts and crashes in between: the highest serial stays in force, and
// of two with one serial the first.
func TestSerials(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		p := newFleetSite(t, "")
		var highest int64
		var force []byte
		for step := range 12 {
			serial := 1 + r.Int64N(6)
			text := p.bundle(serial, fleetClient(fmt.Sprintf("c%d", step)))
			p.offer(text)
			switch r.IntN(3) {
			case 0:
				p.restart()
			default:
				p.s.takeBundle(t.Context(), true)
			}
			if serial > highest {
				highest, force = serial, text
			}
			st := p.s.fleetStatus(time.Now())
			if _, ok := p.s.clients.Client(nameIn(p, force)); !ok || st.Serial != highest || p.s.clients.Len() != 1 {
				t.Fatalf("step %d: serial %d is in force, want %d", step, st.Serial, highest)
			}
		}
	}
}

// nameIn returns the name of the only client in a bundle.
func nameIn(p *fleetSite, text []byte) string {
	p.Helper()
	b := lab.Value(fleet.Parse(text))(p)
	key := lab.Value(setup.ReadFleetKey(place.Folder{Path: p.s.dir}))(p)
	return lab.Value(fleet.Open(b, key))(p).Clients[0].Name
}

// TestTornKeep: a crash at any byte of the writing of a bundle leaves the one before, or the new one.
func TestTornKeep(t *testing.T) {
	p := newFleetSite(t, "")
	ann, bob := fleetClient("ann"), fleetClient("bob")
	p.offer(p.bundle(5, ann))
	p.take(t)
	next := p.bundle(6, bob)
	p.offer(next)
	p.take(t)
	lab.Must(t, os.Remove(p.path()))
	for _, name := range []string{config.BundlesFile, config.BundlesFile2} {
		path := p.s.inState(name)
		whole := lab.Value(os.ReadFile(path))(t)
		if !bytes.Contains(whole, []byte("serial 6")) {
			continue
		}
		for at := range 40 {
			cut := at * len(whole) / 40
			torn := append(bytes.Clone(whole[:cut]), bytes.Repeat([]byte{'x'}, len(whole)-cut)...)
			for _, text := range [][]byte{torn, whole[:cut]} {
				lab.Must(t, os.WriteFile(path, text, 0o600))
				p.restart()
				p.wantInForce(fmt.Sprintf("torn at %d", cut), 5, []*keys.Client{ann}, []*keys.Client{bob})
			}
		}
		lab.Must(t, os.WriteFile(path, append(whole, "what was there before"...), 0o600))
		p.restart()
		p.wantInForce("whole", 6, []*keys.Client{bob}, []*keys.Client{ann})
		return
	}
	t.Fatal("the bundle in force is in neither file")
}

// TestFullDisk: a bundle that cannot be kept is in force all the same, and status reports it.
func TestFullDisk(t *testing.T) {
	p := newFleetSite(t, "")
	ann, bob := fleetClient("ann"), fleetClient("bob")
	p.offer(p.bundle(5, ann))
	p.take(t)
	lab.Must(t, p.s.fleet.kept.Close()) // neither file can be written
	p.offer(p.bundle(6, bob))
	p.take(t)
	p.wantInForce("not kept", 6, []*keys.Client{bob}, []*keys.Client{ann})
	if st := p.s.fleetStatus(time.Now()); st.Unkept == "" || !p.said.has("a restart may bring") {
		t.Errorf("it is not reported: %+v", st)
	}
	lab.Must(t, os.Remove(p.path()))
	p.s.opened = nil // it is closed already
	p.restart()
	p.wantInForce("restarted", 5, []*keys.Client{ann}, []*keys.Client{bob})
}

// TestRollback: neither an older bundle nor another with the same serial replaces the one in force, and the same bytes
// again are no news.
func TestRollback(t *testing.T) {
	p := newFleetSite(t, "")
	ann, bob := fleetClient("ann"), fleetClient("bob")
	force := p.bundle(5, ann)
	for what, text := range map[string][]byte{"": force, "older": p.bundle(4, bob), "twin": p.bundle(5, bob)} {
		p.offer(force)
		p.s.takeBundle(t.Context(), true)
		was := p.s.fleetStatus(time.Now()).Refused[what]
		p.offer(text)
		r, err := p.s.takeBundle(t.Context(), true)
		if is := p.s.fleetStatus(time.Now()).Refused[what]; r != nil || (err != nil) != (what != "") ||
			what != "" && is != was+1 {
			t.Errorf("%q: got %v, %v, and %d refusals", what, r, err, is-was)
		}
		p.wantInForce(what, 5, []*keys.Client{ann}, []*keys.Client{bob})
	}
}

// TestRenamedGateway: a gateway that gets another name in its fleet takes no lower serial under that than it has had.
func TestRenamedGateway(t *testing.T) {
	p := newFleetSite(t, `gateway = "gw"`)
	ann, bob := fleetClient("ann"), fleetClient("bob")
	p.offer(p.bundle(5, ann))
	p.take(t)
	p.rewrite(`gateway = "gw"`, `gateway = "web8"`)
	p.s.config = lab.Value(config.Load(p.s.dir))(t)
	named := func(serial int64) []byte {
		return p.sealed(p.seal, "web8", p.to, serial, p.contents([]*keys.Client{bob}))
	}
	p.offer(named(4))
	p.restart()
	p.wantInForce("older", 0, nil, []*keys.Client{ann, bob})
	p.offer(named(6))
	p.take(t)
	p.wantInForce("newer", 6, []*keys.Client{bob}, []*keys.Client{ann})
}

// TestUnreported: a bundle is taken over although no event reports it, and it is reported if the directory that was
// opened is no longer the one of the settings.
func TestUnreported(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundles")
	lab.Must(t, os.Mkdir(dir, 0o755))
	p := newFleetSite(t, fmt.Sprintf("bundle = %q", filepath.Join(dir, "web.bundle")))
	ann, bob := fleetClient("ann"), fleetClient("bob")
	p.offer(p.bundle(5, ann))
	p.take(t)
	p.s.fleet.watcher = nil // as on a network file system
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.s.watchBundle(ctx) }()
		time.Sleep(2 * time.Minute)
		p.offer(p.bundle(6, bob))
		time.Sleep(2 * time.Minute)
		p.wantInForce("later", 6, []*keys.Client{bob}, []*keys.Client{ann})
		if p.said.has("refused") {
			t.Error("what has not changed is refused")
		}
		lab.Must(t, errors.Join(os.Rename(dir, dir+".away"), os.Mkdir(dir, 0o755)))
		time.Sleep(2 * time.Minute)
		if st := p.s.fleetStatus(time.Now()); st.LastRefused == nil {
			t.Error("another directory goes unnoticed")
		}
		cancel()
		lab.Must(t, <-ended)
	})
}

// TestUnreadableKey: while the gateway's key cannot be read, the fleet's clients cannot knock. Afterwards a bundle that
// is older than the last one is refused.
func TestUnreadableKey(t *testing.T) {
	p := newFleetSite(t, "")
	ann, bob := fleetClient("ann"), fleetClient("bob")
	last, older := p.bundle(5, ann), p.bundle(4, bob)
	p.offer(last)
	p.take(t)
	key := filepath.Join(p.s.dir, config.FleetKeyFile)
	away := key + ".away"
	lab.Must(t, os.Rename(key, away))
	p.offer(older)
	p.restart()
	p.wantInForce("without a key", 0, nil, []*keys.Client{ann, bob})
	lab.Must(t, os.Rename(away, key))
	p.s.takeBundle(t.Context(), true)
	p.wantInForce("an older bundle", 0, nil, []*keys.Client{ann, bob})
	p.restart()
	p.wantInForce("restarted", 5, []*keys.Client{ann}, []*keys.Client{bob})
}

// TestLeavesTheFleet: a client that is not in the next bundle, or may do less there, loses its grants. A packet that
// was made before opens nothing, even if a later bundle has the client again.
func TestLeavesTheFleet(t *testing.T) {
	for name, change := range map[string]func(c *keys.Client) *keys.Client{
		"revoked":  func(*keys.Client) *keys.Client { return nil },
		"narrowed": func(c *keys.Client) *keys.Client { c.Allow = []string{"web"}; return c },
		"rotated":  func(c *keys.Client) *keys.Client { c.Key = keys.NewKey(); return c },
	} {
		t.Run(name, func(t *testing.T) {
			p := newFleetSite(t, "")
			ann, bob := fleetClient("ann"), fleetClient("bob")
			p.offer(p.bundle(5, ann, bob))
			p.take(t)
			held := sealed(t, p.sender(ann))
			p.wantInForce("before", 5, []*keys.Client{ann, bob}, nil)
			changed := *ann
			next := []*keys.Client{bob}
			if c := change(&changed); c != nil {
				next = append(next, c)
			}
			p.offer(p.bundle(6, next...))
			r, err := p.s.takeBundle(t.Context(), true)
			lab.Must(t, err)
			if len(r.Ended) != 1 || r.Ended[0].Client != "ann" || len(p.s.firewall.GrantsOf("ann", time.Now())) != 0 ||
				len(p.s.firewall.GrantsOf("bob", time.Now())) != 1 {
				t.Errorf("ended: %v", r.Ended)
			}
			p.offer(p.bundle(7, ann, bob))
			p.take(t)
			if v := p.s.handle(t.Context(), arriving(held)).Verdict; v == audit.Granted {
				t.Error("a packet from before opens it again")
			}
		})
	}
}

// TestLocalClients: files count beside the fleet only if the settings say so, and never against it.
func TestLocalClients(t *testing.T) {
	for _, local := range []bool{false, true} {
		p := newFleetSite(t, fmt.Sprintf("local_clients = %v", local))
		gates := lab.Value(keys.ReadGate(filepath.Join(p.s.dir, config.GateFile)))(t)
		own := spa.Sender{Server: p.s.config.ServerID, Gate: gates.Current, ID: p.client.ID, Key: p.client.Key}
		knocks := func(when string, want bool) {
			t.Helper()
			if v := p.s.handle(t.Context(), arriving(sealed(t, own))).Verdict; (v == audit.Granted) != want {
				t.Errorf("local_clients = %v: %s: %v", local, when, v)
			}
		}
		shadowed := func() bool { return slices.Equal(p.s.fleetStatus(time.Now()).Shadowed, []string{"alice"}) }
		knocks("without a bundle", local)
		ann, alice := fleetClient("ann"), fleetClient("alice")
		p.offer(p.bundle(1, ann))
		p.take(t)
		knocks("beside others", local)
		if shadowed() == local || p.verdict(ann) != audit.Granted {
			t.Errorf("local_clients = %v: the files that do not count: %v", local, p.s.clients.Shadowed())
		}
		p.offer(p.bundle(2, ann, alice))
		p.take(t)
		knocks("beside a client of that name", false)
		if !shadowed() || p.verdict(alice) != audit.Granted {
			t.Errorf("local_clients = %v: the fleet's alice cannot knock", local)
		}
		if len(p.s.firewall.GrantsOf("alice", time.Now())) != 1 {
			t.Errorf("grants: %v", p.s.firewall.GrantsOf("alice", time.Now()))
		}
		p.offer(p.bundle(3, ann))
		p.take(t)
		knocks("alone again, but its window is not over", false)
		if v := p.verdict(alice); v == audit.Granted {
			t.Error("a client that left the fleet is let in")
		}
	}
}

// TestNoDirectoryOfBundles: without the directory in which bundles are offered, the server starts with the one that it
// has kept, and reports that it sees no other.
func TestNoDirectoryOfBundles(t *testing.T) {
	away := filepath.Join(t.TempDir(), "away")
	lab.Must(t, os.Mkdir(away, 0o755))
	p := newFleetSite(t, fmt.Sprintf("bundle = %q", filepath.Join(away, "bundle")))
	ann := fleetClient("ann")
	p.offer(p.bundle(1, ann))
	p.take(t)
	lab.Must(t, os.RemoveAll(away))
	if _, err := p.s.takeBundle(t.Context(), true); err == nil {
		t.Error("a directory that is gone is not reported")
	}
	p.restart()
	p.wantInForce("without a directory", 1, []*keys.Client{ann}, nil)
	if st := p.s.fleetStatus(time.Now()); !st.Unwatched || !p.said.has("go unnoticed") {
		t.Errorf("got %+v", st)
	}
}

// TestOldBundle: a bundle that is older than the settings allow is reported once.
func TestOldBundle(t *testing.T) {
	p := newFleetSite(t, `max_age = "1h"`)
	p.offer(p.bundle(1, fleetClient("ann")))
	p.take(t)
	now := time.Now()
	p.s.noteAge(now)
	if p.s.fleetStatus(now).Old || p.said.has("is old") {
		t.Error("a new bundle is old")
	}
	for range 2 {
		p.s.noteAge(now.Add(2 * time.Hour))
	}
	if !p.s.fleetStatus(now.Add(2*time.Hour)).Old || p.said.count("is old") != 1 {
		t.Errorf("the log has %d lines of it", p.said.count("is old"))
	}
}

// TestWatchBundle: a bundle is taken over as soon as it is there, also if it comes in pieces, and a reload does so too.
func TestWatchBundle(t *testing.T) {
	p := newFleetSite(t, "")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.s.watchBundle(ctx) }()
	serial := func(want int64) func() bool {
		return func() bool { return p.s.fleetStatus(time.Now()).Serial == want }
	}
	p.offer(p.bundle(1, fleetClient("ann")))
	lab.Eventually(t, "the bundle to be in force", serial(1))
	text := p.bundle(2, fleetClient("ann"))
	file := lab.Value(os.Create(p.path()))(t)
	for part := range slices.Chunk(text, len(text)/3) {
		lab.Value(file.Write(part))(t)
	}
	lab.Must(t, file.Close())
	lab.Eventually(t, "the bundle in pieces to be in force", serial(2))
	p.offer([]byte("x"))
	lab.Eventually(t, "the file to be refused", func() bool { return p.said.has("refused") })
	p.offer(p.bundle(3, fleetClient("ann")))
	lab.Eventually(t, "the bundle after it to be in force", serial(3))
	stop()
	lab.Must(t, <-done)

	p.offer(p.bundle(4, fleetClient("bob")))
	r, err := p.s.reload(t.Context())
	if err != nil || !serial(4)() || !slices.Equal(r.Added, []string{"bob"}) ||
		!slices.Equal(r.Removed, []string{"ann"}) {
		t.Errorf("reload: %+v, %v", r, err)
	}
	p.offer([]byte("y"))
	r, err = p.s.reload(t.Context())
	if r == nil || err == nil || !strings.Contains(err.Error(), "not a whole bundle") {
		t.Errorf("reload with a bad one: %+v, %v", r, err)
	}
}
