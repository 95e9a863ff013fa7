package bastion

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// units replaces systemd for systemctl: it runs the lines of the installed unit files, with the capabilities that they
// allow. It tests the lines and the page, not systemd.
type units struct {
	m    *machine
	runs map[string]*process // running services by unit
}

// systemctl runs one command.
func (u *units) systemctl(t *testing.T, args []string) {
	t.Helper()
	verb := args[0]
	for _, unit := range args[1:] {
		if strings.HasPrefix(unit, "-") {
			continue
		}
		switch verb {
		case "enable", "start":
			u.start(t, unit)
		case "restart":
			u.stop(t, unit)
			u.start(t, unit)
		case "reenable": // changes what starts at the next boot
		case "disable", "stop":
			u.stop(t, unit)
		case "reload":
			out, err := u.m.run(t, strings.TrimPrefix(u.value(t, unit, "ExecReload"), "+"))
			if err != nil {
				t.Fatalf("systemctl reload %s: %v\n%s", unit, err, out)
			}
		default:
			t.Fatalf("systemctl %s is not known here", verb)
		}
	}
	if verb == "daemon-reload" {
		u.found(t)
	}
}

// found fails unless the unit file is where systemd looks.
func (u *units) found(t *testing.T) {
	t.Helper()
	for unit := range u.runs {
		if _, err := os.Stat(u.file(unit)); err != nil {
			t.Fatalf("%s runs and has no file: %v", unit, err)
		}
	}
}

func (u *units) file(unit string) string {
	return filepath.Join(u.m.files["/etc"], "systemd", "system", unit)
}

// value returns the value of a key in the installed unit file.
func (u *units) value(t *testing.T, unit, key string) string {
	t.Helper()
	data := lab.Value(os.ReadFile(u.file(unit)))(t)
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && name == key {
			return value
		}
	}
	return ""
}

// start runs a unit: to its end, or until it is ready.
func (u *units) start(t *testing.T, unit string) {
	t.Helper()
	if p := u.runs[unit]; p != nil && !p.ended() {
		return
	}
	u.asRoot(t, unit, "ExecStartPre")
	line := u.value(t, unit, "ExecStart")
	switch kind := u.value(t, unit, "Type"); kind {
	case "oneshot":
		line = u.confined(t, unit) + line
		if out, err := u.m.run(t, line); err != nil {
			t.Fatalf("%s: %s: %v\n%s", unit, line, err, out)
		}
	case "notify":
		u.runs[unit] = u.notified(t, unit, line)
	default:
		t.Fatalf("%s: type %q is not known here", unit, kind)
	}
	u.asRoot(t, unit, "ExecStartPost")
}

// asRoot runs the command of a key, which has the prefixes for root's rights and for failures that do not count.
func (u *units) asRoot(t *testing.T, unit, key string) {
	t.Helper()
	line, plain := strings.CutPrefix(u.value(t, unit, key), "+-")
	if !plain {
		t.Fatalf("%s: %s=%q is not known here", unit, key, line)
	}
	if out, err := u.m.run(t, line); err != nil {
		t.Errorf("%s: %s: %v\n%s", unit, line, err, out)
	}
}

// notified starts a process and waits until it reports that it is ready (sd_notify(3)).
func (u *units) notified(t *testing.T, unit, line string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // the path of a socket must be short
	lab.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "socket")
	conn := lab.Value(net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path}))(t)
	defer conn.Close()
	lab.Must(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o777))) // as systemd's: the server is no longer root
	p := u.m.start(t, "exec "+u.confined(t, unit)+line, "NOTIFY_SOCKET="+path)
	var buf [64]byte
	conn.SetReadDeadline(time.Now().Add(lab.Patience))
	if n, err := conn.Read(buf[:]); err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("%s: got %q, %v, want it to be ready\n%s", unit, buf[:n], err, p.said(t))
	}
	return p
}

// confined returns the part of a command that gives it its unit's user and capabilities.
func (u *units) confined(t *testing.T, unit string) string {
	t.Helper()
	lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	user := u.value(t, unit, "User")
	list := func(key string) string {
		names := strings.ReplaceAll(u.value(t, unit, key), "CAP_", "+")
		return "-all," + strings.ReplaceAll(strings.ToLower(names), " ", ",")
	}
	ambient := list("AmbientCapabilities")
	return fmt.Sprintf("setpriv --no-new-privs --reuid %s --regid %[1]s --init-groups --inh-caps=%s --ambient-caps=%[2]s "+
		"--bounding-set=%s -- ", user, ambient, list("CapabilityBoundingSet"))
}

// stop stops a running unit as systemd does.
func (u *units) stop(t *testing.T, unit string) {
	t.Helper()
	p := u.runs[unit]
	if p == nil {
		return
	}
	delete(u.runs, unit)
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("%s ended with %d:\n%s", unit, code, p.said(t))
	}
}

// agentUnit is the unit of spa-fleet agent.
const agentUnit = "../fleet/spa-fleet-agent.service"

// TestUnits: systemd accepts the units, and rates their sandboxes. What keeps the server from 0: the host's network,
// sockets for packets, receipts, netlink and systemd, the rights to change the firewall and to see packets, and the
// call that drops the latter.
func TestUnits(t *testing.T) {
	analyze := lab.NeedProgram(t, "systemd-analyze", "apt-get install systemd")
	tenths := map[string]string{"spa-guard.service": "16", "spa-server.service": "19", agentUnit: "11"}
	for unit, most := range tenths {
		out, err := exec.Command(analyze, "security", "--offline=true", "--threshold="+most, unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", unit, err, out)
		}
	}
	for _, unit := range []string{"spa-guard.service", "spa-guard-root.service", "spa-server.service", agentUnit} {
		if problems := verify(t, analyze, unit); problems != "" {
			t.Errorf("%s: %s", unit, problems)
		}
		if unit == agentUnit {
			continue
		}
		// The guard's keeper must outlive the daemon, even if systemd stops that.
		if data, err := os.ReadFile(unit); err != nil || !strings.Contains(string(data), "\nKillMode=process\n") {
			t.Errorf("%s: systemd would end what holds the guard (%v)", unit, err)
		}
	}
	// Not all versions of systemd include these in a group of calls, and the sandbox needs them.
	data := lab.Value(os.ReadFile("spa-server.service"))(t)
	for _, line := range []string{"SystemCallFilter=@system-service seccomp landlock_create_ruleset landlock_add_rule " +
		"landlock_restrict_self", "SystemCallErrorNumber=EPERM"} {
		if !strings.Contains(string(data), "\n"+line+"\n") {
			t.Errorf("spa-server.service has no line %s", line)
		}
	}
}

// verify returns what systemd-analyze reports about a unit's own lines.
func verify(t *testing.T, analyze, unit string) string {
	t.Helper()
	out, _ := exec.Command(analyze, "verify", "--man=no", "./"+unit).CombinedOutput()
	var problems []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, filepath.Base(unit)+":") && !strings.Contains(line, "is not executable") {
			problems = append(problems, strings.TrimSpace(line))
		}
	}
	return strings.Join(problems, "; ")
}
