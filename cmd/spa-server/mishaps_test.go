package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestTeardownOfBrokenFiles: an administrator who is locked out may have made a mistake in server.toml, or lost it: the
// guard is removed anyway, with the server alive and dead.
func TestTeardownOfBrokenFiles(t *testing.T) {
	spoil := map[string]func(path string) error{
		"a mistake": func(path string) error {
			file, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, append(file, "\n[firewall\n"...), 0o640)
		},
		"lost": os.Remove,
	}
	for name, spoil := range spoil {
		for _, alive := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				g := newGateway(t)
				g.serve(":22")
				g.start()
				if !alive {
					g.server.stop(syscall.SIGKILL)
				}
				lab.Must(t, spoil(filepath.Join(g.dir, "server.toml")))
				g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
				if alive {
					wantSaid(t, g.must("spa-server", "grants", "--config", g.dir), "CLIENT")
				}
				if out, code := g.run(g.host, "spa-server", "teardown", "--config", g.dir); code != 0 {
					t.Fatalf("teardown: exit %d\n%s", code, out)
				}
				g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down")
				if alive {
					lab.Eventually(t, "the server to end", g.server.done)
					g.server.stop(0)
				}
				g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down, a moment later")
			})
		}
	}
}

// TestTeardownOfAnotherDirectory: without files, the guard of a server that uses other files is not reported as
// removed.
func TestTeardownOfAnotherDirectory(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	elsewhere := filepath.Join(t.TempDir(), "typo")
	for command, hint := range map[string]string{
		"teardown": "stop it, then tear down again", "status": "spa-server init", "run": "spa-server init",
		"guard": "spa-server init", "check": "spa-server init",
	} {
		out, code := g.run(g.host, "spa-server", command, "--config", elsewhere)
		if code != 1 {
			t.Errorf("%s: exit %d, want 1\n%s", command, code, out)
		}
		wantSaid(t, out, filepath.Join(elsewhere, "server.toml")+": no such file or directory", hint)
	}
	g.wantDark("192.0.2.3", "192.0.2.1:22", "still guarded")
	if g.server.done() {
		t.Error("the server has ended")
	}
}

// TestTeardownOfLostDirectory: the guard is removed even if all files are lost, once no server runs.
func TestTeardownOfLostDirectory(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	lab.Must(t, os.RemoveAll(g.dir))
	if out, code := g.run(g.host, "spa-server", "teardown", "--config", g.dir); code != 1 {
		t.Errorf("with the server alive: exit %d, want 1\n%s", code, out)
	}
	g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
	g.server.stop(syscall.SIGKILL)
	if out, code := g.run(g.host, "spa-server", "teardown", "--config", g.dir); code != 0 {
		t.Fatalf("teardown: exit %d\n%s", code, out)
	}
	g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down")
}

// TestNoState: the error for a missing state directory names the command that creates it.
func TestNoState(t *testing.T) {
	g := newGateway(t)
	state := filepath.Join(t.TempDir(), "not here")
	g.set("", "state", `"`+state+`"`)
	for _, command := range []string{"run", "check"} {
		out, code := g.run(g.host, "spa-server", command, "--config", g.dir)
		if code != 1 {
			t.Errorf("%s: exit %d, want 1\n%s", command, code, out)
		}
		wantSaid(t, out, state+": no such directory", "install -d -m 750 ", "'"+state+"'")
	}
}

// TestGuardWithoutState: the guard needs no state directory, a server that starts later with one takes it over,
// and teardown takes it away.
func TestGuardWithoutState(t *testing.T) {
	lab.NeedRoot(t)
	for _, dead := range []bool{true, false} {
		g := newGateway(t)
		g.serve(":22")
		g.cleanStopgap()
		state := filepath.Join(t.TempDir(), "state")
		g.set("", "state", `"`+state+`"`)
		wantSaid(t, g.fails(0, "guard", "--config", g.dir), "the guard is in place", "level=ERROR",
			state+": no such directory")
		g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
		if !dead {
			lab.Must(t, os.Mkdir(state, 0o750))
			g.start() // without a journal it refuses knocks for a window
			g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
		}
		g.fails(0, "teardown", "--config", g.dir)
		g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down")
	}
}

// cleanStopgap removes what a guard without a state directory leaves until the next boot.
func (g *gateway) cleanStopgap() {
	g.t.Helper()
	lab.Must(g.t, g.host.Do(func() error {
		namespace, err := os.Stat("/proc/thread-self/ns/net")
		if err == nil {
			dir := fmt.Sprintf("/run/spa-%d", namespace.Sys().(*syscall.Stat_t).Ino)
			g.t.Cleanup(func() { os.RemoveAll(dir) })
		}
		return err
	}))
}

// TestStateMoved: if server.toml names another state directory, reload prints how to move there, and that works; so
// does a restart without it, and teardown at any time.
func TestStateMoved(t *testing.T) {
	for name, step := range map[string]func(g *gateway, state string){
		"teardown of the running": func(g *gateway, state string) {},
		"teardown of the dead":    func(g *gateway, state string) { g.server.stop(syscall.SIGKILL) },
		"restart": func(g *gateway, state string) {
			g.server.stop(syscall.SIGTERM)
			g.start()
			g.wantDark("192.0.2.2", "192.0.2.1:22", "the grant was in the other directory")
		},
		"moved as reload says": func(g *gateway, state string) {
			out := g.fails(1, "reload", "--config", g.dir)
			_, move, ok := strings.Cut(out, "systemctl stop spa-server && ")
			move, _, ok2 := strings.Cut(move, " && systemctl start spa-server")
			if !ok || !ok2 {
				t.Fatalf("reload says\n%s", out)
			}
			g.server.stop(syscall.SIGTERM)
			if out, err := exec.Command("sh", "-ec", move).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", move, err, out)
			}
			g.start()
			g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted before")
			g.mustOpen()
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			g.serve(":22")
			g.start()
			g.mustOpen("--for", "10m")
			g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted")
			state := t.TempDir()
			g.set("", "state", `"`+state+`"`)
			g.fails(0, "status", "--config", g.dir)
			step(g, state)
			g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
			g.fails(0, "teardown", "--config", g.dir)
			g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down")
		})
	}
}

// TestLastGood: if server.toml has a mistake, the guard is loaded with the earlier settings, and with --last-good the
// server runs with them; without it, it does not start.
func TestLastGood(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.serve(":8080")
	good := lab.Value(os.ReadFile(filepath.Join(g.dir, "server.toml")))(t)
	write := func(text string) {
		t.Helper()
		lab.Must(t, os.WriteFile(filepath.Join(g.dir, "server.toml"), []byte(text), 0o640))
	}
	mistaken := "surprise = 1\n" + string(good)
	write(mistaken)
	wantSaid(t, g.fails(1, "guard", "--config", g.dir), "surprise")
	write(string(good))
	g.start()
	write(string(good) + "[service.http]\nports = [\"tcp/8080\"]\n")
	g.fails(0, "reload", "--config", g.dir)
	g.server.stop(syscall.SIGKILL)
	g.fails(0, "teardown", "--config", g.dir)
	g.wantOpen("192.0.2.3", "192.0.2.1:8080", "torn down")

	write(mistaken)
	wantSaid(t, g.fails(1, "run", "--config", g.dir), "surprise")
	g.wantOpen("192.0.2.3", "192.0.2.1:8080", "not started")
	wantSaid(t, g.fails(0, "guard", "--config", g.dir), "surprise", "last good version", "the guard is in place")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
	g.wantDark("192.0.2.3", "192.0.2.1:8080", "guarded as after the reload")
	g.start("--last-good")
	wantSaid(t, g.server.log(), "surprise", "last good version")
	g.mustOpen()
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
	if out := g.fails(1, "reload", "--config", g.dir); !strings.Contains(out, "surprise") {
		t.Errorf("reload says\n%s", out)
	}
	write(string(good))
	wantSaid(t, g.fails(0, "reload", "--config", g.dir), "service.http (gone)")
	g.wantOpen("192.0.2.3", "192.0.2.1:8080", "no service any more")
}

// TestStatusOfDryRun: if nothing is guarded, status does not claim that a guard is in place.
func TestStatusOfDryRun(t *testing.T) {
	g := newGateway(t)
	g.set("firewall", "backend", `"dry-run"`)
	g.start()
	out := g.fails(0, "status", "--config", g.dir)
	wantSaid(t, out, "none: a dry run")
	if strings.Contains(out, "in place") {
		t.Errorf("a dry run is reported as a guard\n%s", out)
	}
	wantSaid(t, g.must("spa-server", "reload", "--json", "--config", g.dir),
		`"added":[],"changed":[],"removed":[],"ended":[]`)
}

// TestInitOfImpossibleServices: flags that no server.toml could hold are misuse, and leave nothing behind.
func TestInitOfImpossibleServices(t *testing.T) {
	g := &gateway{t: t}
	host := lab.New(t, "host")[0]
	for service, says := range map[string]string{
		"k=udp/62201":     "udp/62201 is a knock port",
		"a=tcp/1-65535":   "a service has at most",
		"a=tcp/1-9,tcp/5": "overlap",
		"a=tcp/22,tcp/22": "overlap",
	} {
		dir := filepath.Join(t.TempDir(), "etc")
		out, code := g.run(host, "spa-server", "init", "--address", "gw.example.net", "--service", service, "--config", dir)
		if code != 2 {
			t.Errorf("%s: exit %d, want 2\n%s", service, code, out)
		}
		wantSaid(t, out, says, "hint: nothing was written")
		if strings.Contains(out, "server.toml:") {
			t.Errorf("%s: a line of a file that is not there is named\n%s", service, out)
		}
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s: the directory is left behind", service)
		}
	}
}

// TestSettingsAreRoots: a compromised server cannot decide what is guarded at the next boot. It has no open descriptor
// of the saved settings, and a copy that another user could write is ignored.
func TestSettingsAreRoots(t *testing.T) {
	lab.NeedRoot(t)
	g := newGateway(t)
	g.serve(":22")
	g.start()
	copied := filepath.Join(g.dir, "settings")
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", g.server.cmd.Process.Pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("%v: %v", fds, err)
	}
	for _, fd := range fds {
		if file, err := os.Readlink(fd); err == nil && file == copied {
			t.Errorf("the server holds %s open", file)
		}
	}
	good := lab.Value(os.ReadFile(filepath.Join(g.dir, "server.toml")))(t)
	text := lab.Value(os.ReadFile(copied))(t)
	for name, spoil := range map[string]func() error{
		"another's":         func() error { return os.Chown(copied, 54321, 0) },
		"for all to write":  func() error { return os.Chmod(copied, 0o602) },
		"with another name": func() error { return os.Link(copied, copied+".too") },
		"a link": func() error {
			return errors.Join(os.WriteFile(copied+".of", text, 0o600), os.Remove(copied), os.Symlink(copied+".of", copied))
		},
	} {
		lab.Must(t, spoil())
		g.write(append([]byte("surprise = 1\n"), good...))
		g.server.stop(syscall.SIGKILL)
		g.fails(0, "teardown", "--config", g.dir)
		wantSaid(t, g.fails(1, "guard", "--config", g.dir), "surprise")
		g.write(good)
		if out := g.fails(1, "check", "--config", g.dir); name == "another's" || name == "for all to write" {
			wantSaid(t, out, "users other than root can write it", "spa-server reload")
		}
		g.start()
		g.write(append([]byte("# changed\n"), good...))
		g.fails(0, "reload", "--config", g.dir)
		g.write(append([]byte("surprise = 1\n"), good...))
		g.server.stop(syscall.SIGKILL)
		g.fails(0, "teardown", "--config", g.dir)
		wantSaid(t, g.fails(0, "guard", "--config", g.dir), "surprise", "last good version", "the guard is in place")
		g.wantDark("192.0.2.3", "192.0.2.1:22", name+": created again")
		os.Remove(copied + ".too")
	}
}

func (g *gateway) write(settings []byte) {
	g.t.Helper()
	lab.Must(g.t, os.WriteFile(filepath.Join(g.dir, "server.toml"), settings, 0o640))
}

// TestGuardBesideALock: a process that holds the server's lock without being a server cannot keep ports open.
func TestGuardBesideALock(t *testing.T) {
	lab.NeedRoot(t)
	g := newGateway(t)
	g.serve(":22")
	g.cleanStopgap()
	file := lab.Value(os.OpenFile(filepath.Join(g.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600))(t)
	defer file.Close()
	lab.Must(t, syscall.Flock(int(file.Fd()), syscall.LOCK_EX))
	wantSaid(t, g.fails(0, "guard", "--config", g.dir), "the guard is in place")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
	file.Close()
	g.start()
	g.mustOpen()
	wantSaid(t, g.fails(0, "guard", "--config", g.dir), "managed by the running spa-server")
}
