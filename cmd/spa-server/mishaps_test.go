package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestTeardownOfBrokenFiles: whoever has locked himself out may have done so by a mistake in
// server.toml, or lost it: the guard goes all the same, with the server alive and dead.
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
				if err := spoil(filepath.Join(g.dir, "server.toml")); err != nil {
					t.Fatal(err)
				}
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

// TestTeardownOfAnotherDirectory: where there are no files, a server that works by others is not
// told of as gone.
func TestTeardownOfAnotherDirectory(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	elsewhere := filepath.Join(t.TempDir(), "typo")
	for command, hint := range map[string]string{
		"teardown": "stop it, then tear down again", "status": "spa-server init", "run": "spa-server init", "guard": "spa-server init", "check": "spa-server init",
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

// TestTeardownOfLostDirectory: the guard goes also where all files are lost, once no server runs.
func TestTeardownOfLostDirectory(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	if err := os.RemoveAll(g.dir); err != nil {
		t.Fatal(err)
	}
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

// TestNoState: a state directory that is not there is named with the command that makes it.
func TestNoState(t *testing.T) {
	g := newGateway(t)
	state := filepath.Join(t.TempDir(), "not here")
	g.set("", "state", `"`+state+`"`)
	for _, command := range []string{"run", "guard", "check"} {
		out, code := g.run(g.host, "spa-server", command, "--config", g.dir)
		if code != 1 {
			t.Errorf("%s: exit %d, want 1\n%s", command, code, out)
		}
		wantSaid(t, out, state+": there is no such directory", "install -d -m 750 ", "'"+state+"'")
	}
}

// TestStatusOfDryRun: where nothing is guarded, status does not say that a guard is in place.
func TestStatusOfDryRun(t *testing.T) {
	g := newGateway(t)
	g.set("firewall", "backend", `"dry-run"`)
	g.start()
	out := g.must("spa-server", "status", "--config", g.dir)
	wantSaid(t, out, "none of this server: a dry run")
	if strings.Contains(out, "in place") {
		t.Errorf("a dry run is told of as a guard\n%s", out)
	}
	wantSaid(t, g.must("spa-server", "reload", "--json", "--config", g.dir), `"added":[],"changed":[],"removed":[],"ended":[]`)
}

// TestInitOfImpossibleServices: flags that no server.toml could hold are misuse, and leave nothing.
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
