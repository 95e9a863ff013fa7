package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
)

const spaID = 64123 // the user and group spa of these tests

// withSystemUser makes every program of the gateway see a system user spa.
func (g *gateway) withSystemUser() {
	g.t.Helper()
	g.withAccounts(fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\nspa:x:%d:%d::/:/usr/sbin/nologin", spaID, spaID),
		fmt.Sprintf("root:x:0:\nspa:x:%d:", spaID))
}

// withAccounts makes every program of the gateway see these users and groups.
func (g *gateway) withAccounts(passwd, group string) {
	g.t.Helper()
	lab.NeedOwnRoot(g.t)
	g.accounts = g.t.TempDir()
	for file, lines := range map[string]string{"passwd": passwd, "group": group} {
		lab.Must(g.t, os.WriteFile(filepath.Join(g.accounts, file), []byte(lines+"\n"), 0o644))
	}
}

// seeing returns the command as run on a machine with a system user.
func seeing(accounts string, cmd *exec.Cmd) *exec.Cmd {
	return lab.See(cmd, map[string]string{
		"/etc/passwd": filepath.Join(accounts, "passwd"),
		"/etc/group":  filepath.Join(accounts, "group"),
	})
}

// TestPrivileges: the daemon is the system user, has one capability, and everything works that way.
func TestPrivileges(t *testing.T) {
	lab.NeedRoot(t)
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc"), home: filepath.Join(t.TempDir(), "home")}
	g.client, g.host = lab.Pair(t)
	g.withSystemUser()
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22",
		"--service", "web=tcp/80")
	g.enrol("alice", "ssh")
	for _, file := range []string{"server.toml", "gate.key", "clients", "clients/alice.toml"} {
		info := lab.Value(os.Stat(filepath.Join(g.dir, file)))(t)
		owner := info.Sys().(*syscall.Stat_t)
		if owner.Uid != 0 || owner.Gid != spaID || info.Mode().Perm()&0o027 != 0 {
			t.Errorf("%s: %v %d:%d, want root:spa, not writable by it, nothing for others", file,
				info.Mode(), owner.Uid, owner.Gid)
		}
	}
	g.serve(":22")
	g.start()
	wantStatus(t, g.server.cmd.Process.Pid, map[string]string{
		"Uid":        fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", spaID),
		"Gid":        fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", spaID),
		"Groups":     "",
		"CapEff":     fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN),
		"CapPrm":     fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN),
		"CapBnd":     fmt.Sprintf("%016x", 0),
		"NoNewPrivs": "1",
	})
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "without privileges")

	dave := sender(g.enrol("dave", "ssh"))
	lab.Eventually(t, "the new client to be known", func() bool { return strings.Contains(g.server.log(), "client=dave") })
	r := request()
	r.For = 10 * time.Minute
	g.wantReceipt("192.0.2.4", g.seal(r, dave), dave, spa.Granted)
	g.must("spa-keygen", "revoke", "dave", "--config", g.dir)
	lab.Eventually(t, "what dave had open to be shut", func() bool { return g.endedGrantOf("dave") })
	g.wantDark("192.0.2.4", "192.0.2.1:22", "dave is revoked")
	g.flushRuleset()
	lab.Eventually(t, "the guard to be back", func() bool { return !g.reaches("192.0.2.3", "192.0.2.1:22") })
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after a flush, without privileges")
	if code := g.server.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, want 0\n%s", code, g.server.log())
	}

	// Client files that the system user cannot read would keep their old contents.
	clients := filepath.Join(g.dir, "clients")
	lab.Must(t, errors.Join(os.Chown(clients, 0, 0), os.Chmod(clients, 0o700)))
	wantSaid(t, g.fails(1, "run", "--config", g.dir), "as user spa", "chgrp -R spa "+clients+" && chmod 750 "+clients)
}

// TestPrivilegesWithoutUser: without a system user the daemon becomes a user that owns nothing, and everything works
// that way; the start reports files that it could not read again.
func TestPrivilegesWithoutUser(t *testing.T) {
	lab.NeedRoot(t)
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc"), home: filepath.Join(t.TempDir(), "home")}
	g.client, g.host = lab.Pair(t)
	g.withAccounts("root:x:0:0:root:/root:/bin/sh", "root:x:0:")
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22",
		"--service", "web=tcp/80")
	g.enrol("alice", "ssh")
	g.serve(":22")
	g.start()
	id := fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", sandbox.Unnamed)
	wantStatus(t, g.server.cmd.Process.Pid, map[string]string{"Uid": id, "Gid": id, "Groups": "",
		"CapBnd": fmt.Sprintf("%016x", 0)})
	for path := range files(t, g.dir) {
		var st unix.Stat_t
		lab.Must(t, unix.Lstat(path, &st))
		socket := st.Mode&unix.S_IFMT == unix.S_IFSOCK
		if st.Uid == sandbox.Unnamed != socket {
			t.Errorf("%s belongs to user %d", path, st.Uid)
		}
		if st.Gid == sandbox.Unnamed && st.Mode&0o020 != 0 && !socket {
			t.Errorf("the daemon may write %s", path)
		}
	}
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	dave := sender(g.enrol("dave", "ssh"))
	lab.Eventually(t, "the new client to be known", func() bool { return strings.Contains(g.server.log(), "client=dave") })
	r := request()
	r.For = 10 * time.Minute
	g.wantReceipt("192.0.2.4", g.seal(r, dave), dave, spa.Granted)
	g.must("spa-keygen", "revoke", "dave", "--config", g.dir)
	lab.Eventually(t, "what dave had open to be shut", func() bool { return g.endedGrantOf("dave") })
	g.rewrite("server.toml", `max_for = "10m"`, `max_for = "20m"`)
	g.must("spa-keygen", "rotate-gate", "--config", g.dir)
	if r := g.takeOver(); !slices.Contains(r.Settings, "gate.key") || !slices.Contains(r.Settings, "service.ssh") {
		t.Errorf("a reload took over %v, want the service and the gate key", r.Settings)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after all that")
	if code := g.server.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, want 0\n%s", code, g.server.log())
	}

	// As an earlier version made them.
	for path := range files(t, g.dir) {
		lab.Must(t, os.Lchown(path, 0, 0))
	}
	wantSaid(t, g.fails(1, "run", "--config", g.dir),
		"useradd --system --no-create-home --shell /usr/sbin/nologin spa && chgrp -R spa "+g.dir+" && chmod -R g+rX "+g.dir)
}

// files returns everything in a directory, including itself.
func files(t *testing.T, dir string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	lab.Must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry,
		err error) error {
		all[path] = true
		return err
	}))
	return all
}

// wantStatus compares fields of proc_pid_status(5), of every thread.
func wantStatus(t testing.TB, pid int, want map[string]string) {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	read := 0
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended
		}
		lab.Must(t, err)
		read++
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(line, ":")
			if want, ok := want[name]; ok && strings.TrimSpace(value) != want {
				t.Errorf("%s: %s is %q, want %q", path, name, strings.TrimSpace(value), want)
			}
		}
	}
	if read == 0 {
		t.Errorf("process %d has ended", pid)
	}
}
