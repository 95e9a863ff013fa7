package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// Kinds of the programs of iptables, by the file that they all are.
const (
	nftKind    = "xtables-nft-multi"
	legacyKind = "xtables-legacy-multi"
)

// iptablesKinds are those that a host may have.
func iptablesKinds(t *testing.T, do func(*testing.T, *byIptables)) {
	t.Helper()
	for _, kind := range []string{nftKind, legacyKind} {
		t.Run(kind, func(t *testing.T) { do(t, newByIptables(t, kind)) })
	}
}

// byIptables is a gateway whose server guards with iptables and becomes the system user.
type byIptables struct {
	*gateway
	sees map[string]string // see lab.See
	lock string            // the lock of iptables, which other tests do not share
}

func newByIptables(t *testing.T, kind string) *byIptables {
	t.Helper()
	lab.NeedRoot(t) // to become the system user
	g := &byIptables{
		gateway: &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc"), home: filepath.Join(t.TempDir(), "home")},
		lock:    filepath.Join(t.TempDir(), "lock"),
	}
	g.client, g.host = lab.Pair(t)
	g.withSystemUser()
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22",
		"--service", "web=tcp/80")
	g.enrol("alice", "ssh")
	replaceInFile(t, filepath.Join(g.dir, "server.toml"), `backend = "auto"`, `backend = "iptables"`)
	g.serve(":22")

	lab.Must(t, os.WriteFile(g.lock, nil, 0o600))
	hostsLock := lab.Value(os.OpenFile("/run/xtables.lock", os.O_CREATE, 0o600))(t)
	hostsLock.Close()
	usual := lab.Value(filepath.EvalSymlinks(lab.NeedProgram(t, "iptables", "apt-get install iptables")))(t)
	g.sees = map[string]string{
		"/etc/passwd":       filepath.Join(g.accounts, "passwd"),
		"/etc/group":        filepath.Join(g.accounts, "group"),
		"/run/xtables.lock": g.lock,
		usual:               lab.NeedProgram(t, kind, "apt-get install iptables"),
	}
	return g
}

// spaServer returns a command of the server with this gateway's files.
func (g *byIptables) spaServer(args ...string) *exec.Cmd {
	return lab.See(exec.Command(filepath.Join(bin, "spa-server"), args...), g.sees)
}

func (g *byIptables) start() {
	g.t.Helper()
	g.launch(g.spaServer("run", "--config", g.dir))
	lab.Eventually(g.t, "the server to be ready or to end", func() bool {
		return strings.Contains(g.server.log(), "msg=ready") || g.server.done()
	})
	if g.server.done() {
		g.t.Fatalf("the server ended:\n%s", g.server.log())
	}
}

// iptables runs a program of iptables in the gateway, as another tool does.
func (g *byIptables) iptables(program string, args ...string) {
	g.t.Helper()
	var out strings.Builder
	cmd := lab.See(exec.Command(lab.NeedProgram(g.t, program, "apt-get install iptables"), args...), g.sees)
	cmd.Stdout, cmd.Stderr = &out, &out
	lab.Must(g.t, g.host.Start(cmd))
	if err := cmd.Wait(); err != nil {
		g.t.Fatalf("%s %v: %v\n%s", program, args, err, out.String())
	}
}

// helper returns the server's child that runs iptables. The kernel guarantees a complete list of children only for
// stopped processes, so it tries until it finds it.
func (g *byIptables) helper() (pid int) {
	g.t.Helper()
	lab.Eventually(g.t, "the server to have a helper", func() bool {
		pid = g.helperNow()
		return pid != 0
	})
	return pid
}

func (g *byIptables) helperNow() int {
	g.t.Helper()
	tasks := lab.Value(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", g.server.cmd.Process.Pid)))(g.t)
	for _, path := range tasks {
		list, _ := os.ReadFile(path) // the thread may have ended
		for pid := range strings.FieldsSeq(string(list)) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			if strings.HasPrefix(string(line), "spa-server-iptables\x00") {
				n, _ := strconv.Atoi(pid)
				return n
			}
		}
	}
	return 0
}

// hasEnded reports whether a process no longer runs, even if its exit status has not been read.
func hasEnded(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || strings.Contains(string(status), "State:\tZ") || strings.Contains(string(status), "State:\tX")
}

// TestByIptables: a knock opens, for one address, for a time; the daemon has one capability; a kill leaves nothing
// open; a flush is undone.
func TestByIptables(t *testing.T) {
	iptablesKinds(t, func(t *testing.T, g *byIptables) {
		g.start()
		wantSaid(t, g.server.log(), "iptables", "with ipset")
		wantStatus(t, g.server.cmd.Process.Pid, map[string]string{
			"Uid":    fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", spaID),
			"CapEff": fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN),
			"CapBnd": fmt.Sprintf("%016x", 0),
		})
		wantStatus(t, g.helper(), map[string]string{
			"CapEff": fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW),
			"CapBnd": fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW), "NoNewPrivs": "1",
		})
		g.wantDark("192.0.2.2", "192.0.2.1:22", "before the knock")
		g.mustOpen("--source", "192.0.2.2", "--for", "10m")
		session, err := lab.Dial(g.client, "192.0.2.2", "192.0.2.1:22", lab.Patience)
		if err != nil {
			t.Fatalf("the granted address is not let in: %v", err)
		}
		defer session.Close()
		g.wantDark("192.0.2.3", "192.0.2.1:22", "while it is open for another")

		g.iptables("iptables", "-w", "60", "-t", "mangle", "-F")
		g.iptables("ip6tables", "-w", "60", "-t", "mangle", "-F")
		lab.Eventually(t, "the guard to be back", func() bool { return !g.reaches("192.0.2.3", "192.0.2.1:22") })
		lab.Eventually(t, "the guard to be back over IPv6",
			func() bool { return !g.reaches("2001:db8::2", "[2001:db8::1]:22") })
		g.wantOpen("192.0.2.2", "192.0.2.1:22", "after the flush")
		if err := lab.Echoes(session, "still here", lab.Patience); err != nil {
			t.Errorf("the session did not outlive the flush: %v", err)
		}
		helper := g.helper()
		g.mustOpen("--source", "192.0.2.4", "--for", "2s")
		g.server.stop(syscall.SIGKILL)
		lab.Eventually(t, "the helper to end with the server", func() bool { return hasEnded(helper) })
		g.wantOpen("192.0.2.2", "192.0.2.1:22", "the server is dead and the grant lives")
		lab.Eventually(t, "the grant to end with the server dead",
			func() bool { return !g.reaches("192.0.2.4", "192.0.2.1:22") })
		g.wantDark("192.0.2.3", "192.0.2.1:22", "the server is dead")

		g.start()
		g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted before the server was killed")
		if code := g.server.stop(syscall.SIGTERM); code != 0 {
			t.Errorf("exit %d, want 0\n%s", code, g.server.log())
		}
		g.wantDark("192.0.2.3", "192.0.2.1:22", "stopped")
		teardown := g.spaServer("teardown", "--config", g.dir)
		lab.Must(t, g.host.Start(teardown))
		if err := teardown.Wait(); err != nil {
			t.Errorf("teardown: %v", err)
		}
		g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down")
	})
}

// TestIptablesHelperKilled: the server logs it and exits, to be started again; ports stay shut.
func TestIptablesHelperKilled(t *testing.T) {
	g := newByIptables(t, nftKind)
	g.start()
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	lab.Must(t, unix.Kill(g.helper(), unix.SIGKILL))
	lab.Eventually(t, "the server to end", g.server.done)
	if code := g.server.stop(0); code != 1 {
		t.Errorf("exit %d, want 1", code)
	}
	wantSaid(t, g.server.log(), "helper that runs iptables has ended", "killed", "restart spa-server")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "the server has ended")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "the grant lives")
	g.start()
	g.mustOpen("--source", "192.0.2.4")
	g.wantOpen("192.0.2.4", "192.0.2.1:22", "started again")
}

// TestIptablesMissing: the start reports it, with a hint.
func TestIptablesMissing(t *testing.T) {
	g := newByIptables(t, nftKind)
	nothing := filepath.Join(t.TempDir(), "nothing")
	lab.Must(t, os.WriteFile(nothing, nil, 0o600))
	for place, file := range g.sees {
		if strings.HasSuffix(file, nftKind) {
			g.sees[place] = nothing
		}
	}
	g.launch(g.spaServer("run", "--config", g.dir))
	lab.Eventually(t, "the server to end", g.server.done)
	if code := g.server.stop(0); code != 1 {
		t.Errorf("exit %d, want 1", code)
	}
	wantSaid(t, g.server.log(), "no program iptables", "install the package iptables")
}

// TestIptablesLockHeld: while another tool holds the lock, grants continue.
func TestIptablesLockHeld(t *testing.T) {
	g := newByIptables(t, legacyKind)
	g.start()
	wantSaid(t, g.server.log(), "with ipset") // the rules stay unchanged
	lock := lab.Value(os.OpenFile(g.lock, os.O_RDWR, 0))(t)
	defer lock.Close()
	lab.Must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "while another tool holds the lock")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "while another tool holds the lock")
}
