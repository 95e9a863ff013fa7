package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
)

// newReloaded returns a site whose clock the test sets, and the number of times that the guard was loaded since.
func newReloaded(t *testing.T) (b *bench, loads *int) {
	t.Helper()
	loads = new(int)
	b = newSite(t, func(line string) {
		if strings.Contains(line, "load the guard") {
			*loads++
		}
	})
	b.at = time.Now().Round(0)
	b.s.now = func() time.Time { return b.at }
	*loads = 0
	return b, loads
}

// gate writes gate.key.
func (b *bench) gate(g keys.Gates) {
	b.Helper()
	path := filepath.Join(b.s.dir, config.GateFile)
	lab.Must(b, os.Remove(path))
	lab.Must(b, keys.WriteGate(path, g.Current))
	if g.Previous.IsZero() {
		return
	}
	text := "previous = { key = \"" + g.Previous.Reveal() + "\", until = " + g.Until.UTC().Format(time.RFC3339) + " }\n"
	f := lab.Value(os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0))(b)
	defer f.Close()
	_, err := f.WriteString(text)
	lab.Must(b, err)
}

// reloads makes the server read its valid files again.
func (b *bench) reloads() *control.Reloaded {
	b.Helper()
	r := lab.Value(b.s.reload(b.Context()))(b)
	return r
}

// A rewriting is a change of one file that reverses the decision about a packet.
type rewriting struct {
	before func(b *bench) // nil: none
	change func(b *bench)
	packet func(b *bench) capture.Packet // nil: alice's, made now
	opens  bool                          // after the reload
	told   func(r *control.Reloaded) []string
	names  string // in the answer
	loads  int
}

func settings(r *control.Reloaded) []string { return r.Settings }

// rewritings has one for each setting that a reload applies.
var rewritings = map[string]rewriting{
	"a client is revoked": {
		change: func(b *bench) { b.write(func(c *keys.Client) { c.Revoked = b.at.UTC().Truncate(time.Second) }) },
		told:   func(r *control.Reloaded) []string { return r.Changed }, names: "alice",
	},
	"a client is gone": {
		change: func(b *bench) { os.Remove(filepath.Join(b.s.clientsDir(), "alice.toml")) },
		told:   func(r *control.Reloaded) []string { return r.Removed }, names: "alice",
	},
	"a client is new": {
		change: func(b *bench) {
			bob := *b.client
			bob.Name, bob.ID, bob.Key = "bob", 7, keys.KeyFromBytes([32]byte{7})
			lab.Must(b, keys.WriteClient(b.s.clientsDir(), &bob, true))
		},
		packet: func(b *bench) capture.Packet {
			return b.as(func(s *spa.Sender) { s.ID, s.Key = 7, keys.KeyFromBytes([32]byte{7}) })
		},
		opens: true,
		told:  func(r *control.Reloaded) []string { return r.Added }, names: "bob",
	},
	"another gate key": {
		change: func(b *bench) { b.gate(keys.Gates{Current: keys.NewGateKey()}) },
		told:   settings, names: config.GateFile,
	},
	"the previous gate key is valid for a shorter time": {
		before: func(b *bench) {
			g := keys.Gates{Current: b.sender.Gate}
			g.Rotate(b.at.Add(time.Hour).Truncate(time.Second))
			b.gate(g)
			b.reloads()
		},
		change: func(b *bench) {
			g := keys.Gates{Current: b.s.identity.Gates[0].Key, Previous: b.s.identity.Gates[1].Key, Until: b.at.Add(-time.Hour)}
			b.gate(g)
		},
		told: settings, names: config.GateFile,
	},
	"a shorter window": {
		change: func(b *bench) { b.rewrite(`window = "30s"`, `window = "10s"`) },
		packet: func(b *bench) capture.Packet { return b.packet(-20 * time.Second) },
		told:   settings, names: "window",
	},
	"a longer window, and another guard": {
		change: func(b *bench) {
			b.rewrite(`window = "30s"`, `window = "50s"`)
			b.rewrite(`closed = "drop"`, `closed = "reject"`)
		},
		packet: func(b *bench) capture.Packet {
			b.at = b.at.Add(2 * time.Minute) // packets that were stale before the longer window stay stale
			return b.packet(-40 * time.Second)
		},
		opens: true, told: settings, names: "window", loads: 1,
	},
	"a service is another": {
		change: func(b *bench) { b.rewrite("[service.ssh]", "[service.web]") },
		told:   settings, names: "service.web (new)",
	},
}

// TestReloadTakesOver: the new files count from the reload's answer on, and the old ones no longer do; the answer names
// the change. The guard is changed once if it differs, and otherwise not at all.
func TestReloadTakesOver(t *testing.T) {
	for name, test := range rewritings {
		t.Run(name, func(t *testing.T) {
			b, loads := newReloaded(t)
			if test.before != nil {
				test.before(b)
			}
			packet := test.packet
			if packet == nil {
				packet = func(b *bench) capture.Packet { return b.packet(0) }
			}
			opens := func() bool {
				b.arrive(packet(b))
				return b.event.Receipt.Status == spa.Granted
			}
			if got := opens(); got == test.opens {
				t.Errorf("before the reload it opens: %v (%v)", got, b.event.Err)
			}
			test.change(b)
			*loads = 0
			r := b.reloads()
			if *loads != test.loads {
				t.Errorf("the guard was loaded %d times, want %d", *loads, test.loads)
			}
			if got := opens(); got != test.opens {
				t.Errorf("after the reload it opens: %v (%v)", got, b.event.Err)
			}
			if told := test.told(r); !slices.Contains(told, test.names) {
				t.Errorf("the answer names %v, want %s among it", told, test.names)
			}
		})
	}
}

// TestReloadOfTheSame: a reload of unchanged files changes nothing and ends nothing.
func TestReloadOfTheSame(t *testing.T) {
	b, loads := newReloaded(t)
	b.arrive(b.packet(0))
	held := b.s.firewall.Grants(b.at)
	*loads = 0
	r := b.reloads()
	if named := slices.Concat(r.Settings, r.Added, r.Changed, r.Removed); len(named)+len(r.Ended) != 0 || *loads != 0 {
		t.Errorf("%v changed, %v ended, and the guard was loaded %d times", named, r.Ended, *loads)
	}
	if now := b.s.firewall.Grants(b.at); len(held) != 1 || len(now) != 1 {
		t.Errorf("held before: %v, and afterwards: %v", held, now)
	}
}

// TestReloadTakesAway: grants that a client loses by a reload end, watchers see that, and no older packet opens them
// after they are given back. Other grants continue.
func TestReloadTakesAway(t *testing.T) {
	b, _ := newReloaded(t)
	rewritings["a client is new"].change(b)
	b.reloads()
	b.arrive(rewritings["a client is new"].packet(b))
	b.arrive(b.packet(0))
	late := b.packet(-time.Second)
	w, _ := b.s.feed.Join()
	defer b.s.feed.Leave(w)
	b.write(func(c *keys.Client) { c.Allow = []string{"web"} })
	if r := b.reloads(); len(r.Ended) != 1 || r.Ended[0].Client != "alice" {
		t.Errorf("ended: %v, want alice's", r.Ended)
	}
	if len(w.Lines) != 1 {
		t.Errorf("watchers got %d lines", len(w.Lines))
	} else if d := (<-w.Lines).Decision; d.Verdict != "revoked" || d.Client != "alice" || d.Services[0] != "ssh" {
		t.Errorf("watchers got %+v", d)
	}
	if held := b.s.firewall.Grants(b.at); len(held) != 1 || held[0].Client != "bob" {
		t.Errorf("held: %v, want bob's", held)
	}
	b.write(func(*keys.Client) {})
	b.reloads()
	if b.arrive(late); b.event.Receipt.Status != spa.ReasonSuperseded {
		t.Errorf("an earlier packet: %v", b.event.Receipt.Status)
	}
}

// TestReloadTakesAwayUnheld: whatever an edit takes away, no older packet opens it after it is given back, even if it
// was not open.
func TestReloadTakesAwayUnheld(t *testing.T) {
	for name, edit := range map[string]func(c *keys.Client){
		"service": func(c *keys.Client) { c.Allow = []string{"web"} },
		"key":     func(c *keys.Client) { c.Revoked = time.Unix(1, 0) },
		"time":    func(c *keys.Client) { c.Expires = time.Unix(1, 0) },
		"sources": func(c *keys.Client) { c.From = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} },
		"source":  func(c *keys.Client) { c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} },
		"stated":  func(c *keys.Client) { c.RequireSource = true },
	} {
		b, _ := newReloaded(t)
		late := b.packet(-time.Second)
		b.write(edit)
		b.reloads()
		b.write(func(*keys.Client) {})
		b.reloads()
		if b.arrive(late); b.event.Receipt.Status != spa.ReasonSuperseded {
			t.Errorf("%s: an earlier packet: %v, %v", name, b.event.Receipt.Status, b.event.Err)
		}
	}
}

// TestReloadAllOrNothing: if one file is bad or needs a restart, or the journal cannot follow, the old files stay in
// force. The answer reports grants that ended anyway.
func TestReloadAllOrNothing(t *testing.T) {
	broken := func(b *bench, file string) {
		lab.Must(b, os.WriteFile(filepath.Join(b.s.dir, file), []byte("x"), 0o640))
	}
	for name, test := range map[string]struct {
		spoil func(b *bench)
		loads int
		held  int
	}{
		"server.toml is bad": {func(b *bench) { broken(b, config.FileName) }, 0, 1},
		"gate.key is bad":    {func(b *bench) { broken(b, config.GateFile) }, 0, 1},
		"a client is bad":    {func(b *bench) { broken(b, "clients/bob.toml") }, 0, 1},
		"a restart":          {func(b *bench) { b.rewrite("knock_ports = [62201]", "knock_ports = [62202]") }, 0, 1},
		"the journal": {func(b *bench) {
			b.rewrite(`closed = "drop"`, `closed = "reject"`)
			b.s.journal.Close()
		}, 2, 0}, // there and back
		"the journal alone": {func(b *bench) { b.s.journal.Close() }, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b, loads := newReloaded(t)
			b.arrive(b.packet(0))
			b.write(func(c *keys.Client) { c.Allow = []string{"web"} })
			test.spoil(b)
			w, _ := b.s.feed.Join()
			defer b.s.feed.Leave(w)
			was, clients := b.s.config, b.s.clients.Clients()
			*loads = 0
			want := "nothing was changed"
			if test.held == 0 {
				want = "grants that ended: 1"
			}
			if r, err := b.s.reload(t.Context()); err == nil || !strings.Contains(err.Error(), want) &&
				!strings.Contains(err.(*control.Denied).Hint, want) {
				t.Errorf("got %+v and %v, want %q", r, err, want)
			}
			if *loads != test.loads {
				t.Errorf("the guard was loaded %d times, want %d", *loads, test.loads)
			}
			if b.s.config != was || !slices.EqualFunc(b.s.clients.Clients(), clients, (*keys.Client).Same) ||
				len(b.s.firewall.Grants(b.at)) != test.held {
				t.Error("something was taken over")
			}
			if told := toldTo(w); len(told) != 1-test.held {
				t.Errorf("watchers got %q", told)
			}
		})
	}
}

// TestReloadWithin: if the server can no longer open anything outside its directories, settings that link to there are
// not read.
func TestReloadWithin(t *testing.T) {
	for name, test := range map[string]struct {
		landlock, near bool
		want           string // empty: it is read
		gone           bool
	}{
		"elsewhere":                  {true, false, "was not part of the configuration", false},
		"elsewhere, and not shut in": {false, false, "", false},
		"in one of its directories":  {true, true, "", false},
		"gone":                       {true, true, "no such file", true},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := newReloaded(t)
			if test.landlock {
				b.s.sandbox.Landlock = 1
			}
			near, away := t.TempDir(), t.TempDir()
			b.s.files.Read = []string{filepath.Join(b.s.dir, "gone"), near}
			path, real := filepath.Join(b.s.dir, config.FileName), filepath.Join(away, "server.toml")
			if test.near {
				real = filepath.Join(near, "server.toml")
			}
			lab.Must(t, os.Rename(path, real))
			lab.Must(t, os.Symlink(real, path))
			if test.gone {
				os.Remove(path)
			}
			if _, err := b.s.reload(t.Context()); (err == nil) != (test.want == "") ||
				err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestMendAudit: if the audit log cannot be reopened, the error has the command that allows it.
func TestMendAudit(t *testing.T) {
	b := newBench(t)
	b.s.sandbox.User, b.s.sandbox.UID, b.s.sandbox.GID = "spa", 4321, 4321
	dir, ours := t.TempDir(), t.TempDir()
	lab.Must(t, os.Chown(ours, 4321, 4321))
	file, closed, none := filepath.Join(dir, "file"), filepath.Join(dir, "closed"), filepath.Join(dir, "none")
	gone := filepath.Join(ours, "gone")
	for path, mode := range map[string]fs.FileMode{file: 0o666, closed: 0o600} {
		lab.Must(t, errors.Join(os.WriteFile(path, nil, mode), os.Chmod(path, mode)))
	}
	for _, test := range []struct {
		path string
		why  error
		want string
	}{
		{file, fs.ErrPermission, "systemctl reload spa-server"},
		{closed, fs.ErrPermission, "chown spa " + closed + " && chmod u+rw " + closed + " && systemctl reload spa-server"},
		{none, fs.ErrPermission, "install -T -m 600 -o spa -g spa /dev/null " + none + " && systemctl reload spa-server"},
		{gone, fs.ErrPermission, "su -s /bin/sh -c 'umask 077; : >> " + gone + "' spa && systemctl reload spa-server"},
		{dir, fs.ErrInvalid, "mv -T " + dir + " " + dir + ".old && install -T -m 600 -o spa -g spa /dev/null " + dir +
			" && systemctl reload spa-server"},
		{none, audit.ErrDirectory, "systemctl restart spa-server"},
		{file + "/x", fs.ErrInvalid, "mv -T " + file + "/x " + file + "/x.old && su -s /bin/sh -c 'umask 077; : >> " +
			file + "/x' spa && systemctl reload spa-server"},
	} {
		got := b.s.mendAudit(test.path, test.why)
		if got != test.want {
			t.Errorf("%s, %v: got %q, want %q", test.path, test.why, got, test.want)
		}
		lab.Pasteable(t, test.path, got)
	}
	b.s.sandbox.UID = sandbox.Unnamed
	if got := b.s.mendAudit(none, fs.ErrPermission); got != "systemctl restart spa-server" {
		t.Errorf("of a user without a name: %q", got)
	}
}

// TestReloadBesideTheAudit: a log that cannot be reopened is reported with a command, and does not keep the files from
// being applied.
func TestReloadBesideTheAudit(t *testing.T) {
	b, said := newSite(t, func(string) {}), &lines{}
	b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
	path := b.s.audit.Path()
	lab.Must(t, errors.Join(os.Remove(path), os.Mkdir(path, 0o700)))
	b.write(func(c *keys.Client) { c.Allow = []string{"web"} })
	r, err := b.s.reload(t.Context())
	denied, ok := errors.AsType[*control.Denied](err)
	if r == nil || len(r.Changed) != 1 || !ok || !strings.Contains(denied.Text, "was moved away") ||
		!strings.Contains(denied.Hint, "mv -T "+path) || !said.has("was moved away") {
		t.Errorf("got %+v and %#v, and the log says %q", r, err, said.list)
	}
	b.rewrite("[service.ssh]", "[service.ssh")
	if r, err := b.s.reload(t.Context()); r != nil || err == nil || strings.Contains(err.Error(), "was moved away") {
		t.Errorf("with a mistake: got %+v and %v", r, err)
	}
}
