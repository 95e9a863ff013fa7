package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
)

// capabilityBits are the sets that our processes may have, in the kernel's format.
var capabilityBits = map[string]string{
	"":                           fmt.Sprintf("%016x", 0),
	"CAP_NET_ADMIN":              fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN),
	"CAP_NET_ADMIN, CAP_NET_RAW": fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW),
}

// wantSandboxed fails unless status and kernel agree about each thread of each process, and the sandbox has every part
// that this kernel supports.
func (g *gateway) wantSandboxed(st control.Status, processes ...string) {
	g.t.Helper()
	all := append([]control.Process{{Name: "spa-server", PID: st.PID, Rights: st.Rights}}, st.Processes...)
	var names []string
	for _, p := range all {
		names = append(names, p.Name)
		r := p.Rights
		if r.Landlock == 0 || r.Calls == 0 || !r.NoNewPrivs {
			g.t.Errorf("%s: got %+v, want Landlock, a filter of system calls and no_new_privs", p.Name, r)
		}
		wantStatus(g.t, p.PID, map[string]string{
			"Uid":    fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", r.UID),
			"Gid":    fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", r.GID),
			"CapPrm": capabilityBits[r.Capabilities], "CapEff": capabilityBits[r.Capabilities],
			"CapBnd": capabilityBits[r.Bounding], "NoNewPrivs": "1", "Seccomp": "2",
		})
	}
	if want := append([]string{"spa-server"}, processes...); !slices.Equal(names, want) {
		g.t.Errorf("status reports %v, want %v", names, want)
	}
	// The files of an undumpable process belong to root, even if the process does not (proc(5)).
	info := lab.Value(os.Stat(fmt.Sprintf("/proc/%d/fd", st.PID)))(g.t)
	if info.Sys().(*syscall.Stat_t).Uid != 0 && st.Rights.UID != 0 {
		g.t.Error("the server is dumpable")
	}
}

// TestSandboxed: status agrees with the kernel about the server and the process that keeps its guard.
func TestSandboxed(t *testing.T) {
	g := newSystemGateway(t)
	g.start()
	st := g.status()
	g.wantSandboxed(st, "spa-keeper")
	if st.Rights.Bounding != "" || st.Processes[0].Rights.Capabilities != "" || st.Processes[0].Rights.Bounding != "" {
		t.Errorf("got %+v and %+v, want nothing that programs could have, and nothing for the keeper",
			st.Rights, st.Processes[0].Rights)
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "CAP_NET_ADMIN, no_new_privs true, Landlock ABI ",
		" system calls allowed",
		fmt.Sprintf("spa-keeper, process %d: user 0, no capability", st.Processes[0].PID))
	if strings.Contains(g.server.log(), "level=WARN msg=\"files") || strings.Contains(g.server.log(),
		"level=WARN msg=\"system calls") {
		t.Errorf("it lacks something:\n%s", g.server.log())
	}
}

// TestSandboxedByIptables is the same for the process that runs iptables.
func TestSandboxedByIptables(t *testing.T) {
	iptablesKinds(t, func(t *testing.T, g *byIptables) {
		g.start()
		g.mustOpen("--source", "192.0.2.2", "--for", "10m")
		g.wantSandboxed(g.status(), "spa-server-iptables")
	})
}

// logged gives the gateway a log in a directory of the system user, as logrotate requires.
func (g *gateway) logged() (log string) {
	g.t.Helper()
	log = filepath.Join(g.t.TempDir(), "log", "audit.jsonl")
	g.makeLogDir(filepath.Dir(log))
	replaceInFile(g.t, filepath.Join(g.dir, "server.toml"), `file = "audit.jsonl"`, `file = "`+log+`"`)
	return log
}

func (g *gateway) makeLogDir(dir string) {
	g.t.Helper()
	if err := errors.Join(os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755), os.Chmod(filepath.Dir(dir), 0o755),
		os.Mkdir(dir, 0o750), os.Chown(dir, spaID, spaID)); err != nil {
		g.t.Fatal(err)
	}
}

// TestKilledKeeper: when the keeper dies, the log says so once, and status and check report it; a restart starts a new
// one. When the keeper ends by teardown or with the server, none of them reports it.
func TestKilledKeeper(t *testing.T) {
	g := newSystemGateway(t)
	g.start()
	const said = "the guard's keeper has ended"
	quiet := func(when string) {
		t.Helper()
		check, _ := g.run(g.host, "spa-server", "check", "--config", g.dir)
		if status := g.must("spa-server", "status", "--config", g.dir); strings.Contains(status, "ENDED") ||
			strings.Contains(check, "spa-keeper, has ended") || strings.Contains(g.server.log(), said) {
			t.Errorf("%s:\n%s\n%s\n%s", when, status, check, g.server.log())
		}
	}
	quiet("with its keeper")
	lab.Must(t, syscall.Kill(g.status().Processes[0].PID, syscall.SIGKILL))
	lab.Eventually(t, "the log to say it", func() bool { return strings.Contains(g.server.log(), said) })
	if !g.status().Firewall.Unkept {
		t.Error("status --json does not say it")
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "its keeper has ENDED", "systemctl restart spa-server")
	check, _ := g.run(g.host, "spa-server", "check", "--config", g.dir)
	wantSaid(t, check, "spa-keeper, has ended", "systemctl restart spa-server")
	g.server.stop(syscall.SIGTERM)
	if n := strings.Count(g.server.log(), said); n != 1 {
		t.Errorf("said %d times:\n%s", n, g.server.log())
	}
	g.start()
	quiet("after a restart")
	g.server.stop(syscall.SIGTERM)
	g.must("spa-server", "teardown", "--config", g.dir)
	if strings.Contains(g.server.log(), said) {
		t.Errorf("an orderly end:\n%s", g.server.log())
	}
}

// TestFilesOfTheSandbox: rotated logs and replaced files keep working; if the log was put where the server cannot open
// it, that is reported with a hint.
func TestFilesOfTheSandbox(t *testing.T) {
	g := newSystemGateway(t)
	log := g.logged()
	alice := sender(g.profile())
	g.start()
	knock := func() {
		t.Helper()
		g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	}
	knock()

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Rename(log, log+".1"))
	g.takeOver()
	knock()
	wantLines(t, log, 1)
	wantLines(t, log+".1", 1)

	settings := filepath.Join(g.dir, "server.toml")
	text, err := os.ReadFile(settings)
	must(err)
	must(os.WriteFile(settings+".new", []byte(strings.Replace(string(text), `window = "30s"`, `window = "60s"`, 1)),
		0o640))
	must(os.Chown(settings+".new", 0, spaID))
	must(os.Rename(settings+".new", settings))
	g.wantReloaded("window")

	must(os.Rename(filepath.Dir(log), filepath.Dir(log)+".old"))
	g.makeLogDir(filepath.Dir(log))
	wantSaid(t, g.fails(1, "reload", "--config", g.dir), "nothing has changed",
		"the audit log continues in the file that was moved away", "systemctl restart spa-server")
	knock()
	wantLines(t, filepath.Join(filepath.Dir(log)+".old", "audit.jsonl"), 2)

	elsewhere := filepath.Join(filepath.Dir(filepath.Dir(log)), "server.toml")
	must(os.WriteFile(elsewhere, text, 0o644))
	must(os.Remove(settings))
	must(os.Symlink(elsewhere, settings))
	must(errors.Join(os.Chmod(filepath.Dir(g.dir), 0o755), os.Chmod(filepath.Dir(filepath.Dir(g.dir)), 0o755)))
	wantSaid(t, g.fails(1, "reload", "--config", g.dir), elsewhere, "was not part of the configuration when the "+
		"server started", "restart", "nothing was changed")
	if code := g.server.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, want 0\n%s", code, g.server.log())
	}
	g.start() // with the link from the start, its target can be replaced
	must(os.WriteFile(elsewhere, []byte(strings.Replace(string(text), `window = "30s"`, `window = "90s"`, 1)), 0o644))
	g.wantReloaded("window")
}

func wantLines(t *testing.T, path string, want int) {
	t.Helper()
	text := lab.Value(os.ReadFile(path))(t)
	if got := strings.Count(string(text), `"verdict":`); got != want {
		t.Errorf("%s has %d decisions, want %d:\n%s", path, got, want, text)
	}
}

// TestPoorKernel: if the kernel has neither Landlock nor system call filters the server works, and log, status and
// check report it.
func TestPoorKernel(t *testing.T) {
	lab.NeedRoot(t)
	g := newGateway(t)
	g.serve(":22")
	poor := func(args ...string) {
		t.Helper()
		g.launch(lab.Lacking(g.command("spa-server", args...), unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_SECCOMP))
	}
	poor("run", "--config", g.dir)
	lab.Eventually(t, "the server to be ready or to end", func() bool {
		return strings.Contains(g.server.log(), "msg=ready") || g.server.done()
	})
	says := []string{"files are not restricted", "system calls are not filtered"}
	g.mustOpen("--source", "192.0.2.2")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "without a sandbox")
	for _, text := range says {
		if n := strings.Count(g.server.log(), text); n != 1 {
			t.Errorf("the log says %d times %q, want once:\n%s", n, text, g.server.log())
		}
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), append(says, "no Landlock, all system calls")...)
	if r := g.status().Rights; r.Landlock != 0 || r.Calls != 0 {
		t.Errorf("got %+v", r)
	}
	g.server.stop(syscall.SIGTERM)
	poor("check", "--config", g.dir)
	lab.Eventually(t, "the end of the check", g.server.done)
	wantSaid(t, g.server.log(), "warning: sandbox: files", "warning: sandbox: system calls")
	if lacks := sandbox.Lacks(); len(lacks) != 0 {
		t.Errorf("reported on a kernel that lacks nothing: %v", lacks)
	}
}
