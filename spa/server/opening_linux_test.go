package server

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/replay"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
	"sallyport/spa/server/setup"
)

// openableSite returns a site that a server can open, and its configuration.
func openableSite(t *testing.T) *config.Config {
	t.Helper()
	b := newSite(t, func(string) {})
	state := t.TempDir()
	b.rewrite("state = \".\"", "state = \""+state+"\"")
	b.rewrite("interfaces = []", `interfaces = ["lo"]`)
	c := lab.Value(config.Load(b.s.dir))(t)
	lab.Must(t, replay.Create(filepath.Join(state, config.JournalFile), replay.Config{Window: c.Window,
		LiveNonces: c.Limits.LiveNonces}, time.Now()))
	return c
}

// descriptors returns the targets of the descriptors that the process has open for a server.
func descriptors(t *testing.T, c *config.Config) (list []string) {
	t.Helper()
	entries := lab.Value(os.ReadDir("/proc/self/fd"))(t)
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.HasPrefix(to, c.Dir) || strings.HasPrefix(to, c.State) || strings.HasPrefix(to, "socket:") ||
			to == "anon_inode:inotify" {
			list = append(list, to)
		}
	}
	slices.Sort(list)
	return list
}

func writeBad(path ...string) error { return os.WriteFile(filepath.Join(path...), []byte("x"), 0o600) }

var openFailures = map[string]struct {
	spoil func(c *config.Config) error
	want  string
}{
	"the directory": {func(c *config.Config) error { return os.RemoveAll(c.Dir) }, "no such file"},
	"the client files": {func(c *config.Config) error { return os.RemoveAll(filepath.Join(c.Dir, config.ClientsDir)) },
		"watching the client files"},
	"the gate key": {func(c *config.Config) error { return writeBad(c.Dir, config.GateFile) }, config.GateFile},
	"the journal": {func(c *config.Config) error {
		path := filepath.Join(c.State, config.JournalFile)
		return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
	}, config.JournalFile},
	"the audit log": {func(c *config.Config) error {
		c.Audit.File = filepath.Join(c.State, "gone", "audit")
		return nil
	}, "gone/audit"},
	"the backend": {func(c *config.Config) error { c.Firewall.Backend = "none such"; return nil }, "none such"},
	"the guard": {func(c *config.Config) error {
		c.Firewall.TrustedInterfaces = []string{"a-name-that-no-interface-has"}
		return nil
	}, "a-name-that-no-interface-has"},
	"the sockets": {func(c *config.Config) error { c.KnockPorts = make([]config.KnockPort, 1000); return nil }, "ports"},
	"the control socket": {func(c *config.Config) error {
		return errors.Join(writeBad(c.State, control.SocketName), writeBad(c.Dir, config.ClientsDir, "bob.toml"))
	}, control.SocketName},
}

// TestOpenFails: if anything cannot be opened, the server does not start, names the cause, and leaves nothing open.
func TestOpenFails(t *testing.T) {
	lab.NeedRoot(t)
	for name, test := range openFailures {
		t.Run(name, func(t *testing.T) {
			c := openableSite(t)
			lab.Must(t, test.spoil(c))
			before := descriptors(t, c)
			said, asked := &lines{}, 0
			for n := range 2 { // the second time, nothing of the first is in the way
				o := Options{}
				if n > 0 {
					o = Options{Log: slog.New(witness{slog.DiscardHandler, said.add}),
						Now: func() time.Time { asked++; return time.Now() }}
				}
				s, err := Open(t.Context(), c, o)
				if s != nil || err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %s", err, test.want)
				}
			}
			if after := descriptors(t, c); !slices.Equal(before, after) {
				t.Errorf("open before: %q, and afterwards: %q", before, after)
			}
			if asked == 0 || said.has(shutOutFor) != (name == "the control socket") {
				t.Errorf("the clock was read %d times, and the log says %q", asked, said.list)
			}
		})
	}
	c := openableSite(t)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Open(ctx, c, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("asked to stop: got %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.State, setup.LockFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("asked to stop, and it began: %v", err)
	}
	lock := lab.Value(setup.Lock(c.State))(t)
	defer lock.Close()
	if _, err := Open(t.Context(), c, Options{}); !errors.Is(err, setup.ErrRunning) {
		t.Errorf("another runs: got %v", err)
	}
}

// opening is a server that runs the steps of Open which a test chooses.
func opening(t *testing.T) (*Server, *lines) {
	t.Helper()
	said := &lines{}
	c := openableSite(t)
	s := &Server{config: c, dir: c.Dir, log: slog.New(witness{slog.DiscardHandler, said.add}), now: time.Now,
		seen: newSightings(), feed: feed.New()}
	t.Cleanup(func() { s.Close() })
	return s, said
}

// TestOpenedClients: a bad file shuts out its client, and is named.
func TestOpenedClients(t *testing.T) {
	s, said := opening(t)
	lab.Must(t, errors.Join(s.openDir(), s.openKeys()))
	if _, ok := s.clients.Client("alice"); !ok || said.has(shutOutFor) {
		t.Errorf("alice is known: %v, and the log says %q", ok, said.list)
	}
	lab.Must(t, os.WriteFile(filepath.Join(s.clientsDir(), "bob.toml"), []byte("x"), 0o600))
	if err := s.openKeys(); err != nil || !said.has(shutOutFor) {
		t.Errorf("got %v, and the log says %q", err, said.list)
	}
}

// TestOpenedJournal: the log reports that knocks are refused for a while after a start, and only then.
func TestOpenedJournal(t *testing.T) {
	for _, gone := range []bool{false, true} {
		s, said := opening(t)
		if gone {
			lab.Must(t, os.Remove(s.inState(config.JournalFile)))
		} else {
			later := time.Now().Add(time.Hour)
			s.now = func() time.Time { return later }
		}
		lab.Must(t, s.openJournal())
		if said.has("refusing all knocks") != gone {
			t.Errorf("the journal is gone: %v, and the log says %q", gone, said.list)
		}
	}
}

// TestOpenedFirewall: the guard is loaded, and grants go to it.
func TestOpenedFirewall(t *testing.T) {
	s, said := opening(t)
	lab.Must(t, errors.Join(s.openDir(), s.openKeys(), s.openFirewall(t.Context(), Options{})))
	if s.firewall == nil || s.policy == nil || !said.has("load the guard") {
		t.Errorf("firewall %v, policy %v, and the log says %q", s.firewall, s.policy, said.list)
	}
}

// TestOpenedSettings: the settings that a guard is loaded with are kept, except on trial; if they cannot be, the server
// starts and reports it.
func TestOpenedSettings(t *testing.T) {
	for name, test := range map[string]struct {
		confirm    time.Duration
		full       int // of the places for them, which are the state directory and the one of server.toml
		kept, said bool
	}{
		"kept":        {0, 0, true, false},
		"a trial":     {time.Minute, 0, false, false},
		"beside only": {0, 1, true, true},
		"cannot be":   {0, 2, false, true},
	} {
		s, said := opening(t)
		for _, place := range []string{s.config.State, s.dir}[:test.full] {
			lab.Must(t, os.MkdirAll(filepath.Join(place, setup.SettingsFile, "full"), 0o700))
		}
		o := Options{Confirm: test.confirm}
		if err := errors.Join(s.openDir(), s.openKeys(), s.openFirewall(t.Context(), o)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_, _, err := setup.LastGood(s.dir)
		if (err == nil) != test.kept || said.has("could not be saved") != test.said {
			t.Errorf("%s: found: %v, and the log says %q", name, err, said.list)
		}
	}
}

// TestReachable: files that are opened later can be read, even if the settings are a link to elsewhere.
func TestReachable(t *testing.T) {
	s, _ := opening(t)
	s.config.Audit.File = "/var/log/spa/audit"
	away := t.TempDir()
	path := filepath.Join(s.dir, config.FileName)
	lab.Must(t, errors.Join(os.Rename(path, filepath.Join(away, "settings")),
		os.Symlink(filepath.Join(away, "settings"), path)))
	files := s.reachable()
	slices.Sort(files.Read)
	want := []string{s.dir, s.clientsDir(), away}
	slices.Sort(want)
	if !slices.Equal(files.Read, want) || !slices.Equal(files.Write, []string{s.config.State, "/var/log/spa"}) {
		t.Errorf("got %v", files)
	}
	s.config.Audit.File = ""
	lab.Must(t, os.Remove(path))
	if files := s.reachable(); len(files.Read) != 2 || !slices.Equal(files.Write, []string{s.config.State}) {
		t.Errorf("without either: got %v", files)
	}
}

// TestKeyOf: a revocation reports what the client's key can still open.
func TestKeyOf(t *testing.T) {
	for want, change := range map[string]func(b *bench, c *keys.Client){
		"good":     func(b *bench, c *keys.Client) { c.Expires = b.at.Add(time.Hour).UTC() },
		keyRevoked: func(b *bench, c *keys.Client) { c.Revoked = b.at.Add(-time.Hour).UTC().Truncate(time.Second) },
		keyExpired: func(b *bench, c *keys.Client) { c.Expires = b.at.UTC() },
		"none":     nil,
	} {
		b := newBench(t)
		b.at = b.at.Truncate(time.Second)
		b.s.process(context.Background(), b.packet(0))
		if change == nil {
			b.s.clients = &keys.Registry{}
		} else {
			b.enrol(func(c *keys.Client) { change(b, c) })
		}
		request := control.Request{Client: "alice"}
		if r, err := b.s.revoke(t.Context(), request); err != nil || r.Key != want || r.Since != b.s.since {
			t.Errorf("%s: got %+v, %v", want, r, err)
		}
		_, err := b.s.revoke(t.Context(), request)
		if said := err != nil && strings.Contains(err.Error(),
			"its key is "+want); said != (want == keyRevoked || want == keyExpired) {
			t.Errorf("%s, and nothing is open: got %v", want, err)
		}
		request = control.Request{Source: netip.MustParseAddr("192.0.2.2")}
		if b.s.clients, _ = keys.LoadRegistry(b.s.config.Dir); want != "good" {
			continue
		}
		b.at = b.at.Add(2 * b.s.config.Window)
		b.s.process(context.Background(), b.packet(0))
		if r, err := b.s.revoke(t.Context(), request); err != nil || r.Key != "" {
			t.Errorf("of an address: got %+v, %v", r, err)
		}
	}
}

// TestLost: exactly the grants that are no longer held are reported as ended; client, service and address each
// distinguish grants.
func TestLost(t *testing.T) {
	var all []firewall.Grant
	for _, client := range []string{"alice", "bob"} {
		for _, service := range []string{"ssh", "web"} {
			for _, source := range []string{"192.0.2.2", "192.0.2.3"} {
				all = append(all, firewall.Grant{Client: client, Service: service, Source: netip.MustParseAddr(source)})
			}
		}
	}
	for i, g := range all {
		left := slices.Delete(slices.Clone(all), i, i+1)
		if gone := lost(all, left); len(gone) != 1 || gone[0].Client != g.Client || gone[0].Service != g.Service ||
			gone[0].Source != g.Source {
			t.Errorf("got %v, want %v", gone, g)
		}
		if gone := lost(left, all); len(gone) != 0 {
			t.Errorf("got %v, and nothing is lost", gone)
		}
	}
}

// TestSameGate: a gate key with another end date is a change.
func TestSameGate(t *testing.T) {
	g := spa.Gate{Key: keys.NewGateKey(), Until: now}
	for _, test := range []struct {
		other spa.Gate
		want  bool
	}{{g, true}, {spa.Gate{Key: g.Key, Until: now.Add(1)}, false}, {spa.Gate{Key: keys.NewGateKey(), Until: now}, false}} {
		if got := sameGate(g, test.other); got != test.want {
			t.Errorf("%+v and %+v: %v", g, test.other, got)
		}
	}
}

// TestRestartCommand: the command moves the state files along if the state directory changes.
func TestRestartCommand(t *testing.T) {
	dir := t.TempDir()
	for state, want := range map[string]string{
		"/var/lib/spa": "systemctl restart spa-server (",
		dir: "systemctl stop spa-server && mv /var/lib/spa/journal /var/lib/spa/grants " + dir +
			"/ && systemctl start",
		filepath.Join(dir, "new"): setup.MakeState(filepath.Join(dir, "new")) + " && systemctl stop spa-server && mv",
	} {
		got := restartCommand(&config.Config{State: "/var/lib/spa"}, &config.Config{State: state})
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", state, got, want)
		}
	}
	old := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(old, setup.SettingsFile), nil, 0o600))
	for of, want := range map[string]bool{"/etc/spa": true, old: false} { // beside server.toml they stay
		got := restartCommand(&config.Config{Dir: of, State: old}, &config.Config{Dir: of, State: dir})
		if strings.Contains(got, filepath.Join(old, setup.SettingsFile)+" ") != want {
			t.Errorf("settings beside server.toml %v: got %q", !want, got)
		}
	}
}
