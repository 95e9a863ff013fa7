// Package bastion contains a bastion's units and its runbook, and tests that they work.
package bastion

import (
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

func TestMain(m *testing.M) { lab.Main(m) }

// runbook is the page, its machines, and how far it has been followed.
type runbook struct {
	t             *testing.T
	bastion, home *machine
	units         *units
	foreground    *process // the command that runs until Ctrl-C
	session, bobs net.Conn // a session of Alice's, and one of Bob's
	ran           map[string]bool
}

// after maps commands, by heading, to checks of their effect. Each must run.
var after = map[string]func(r *runbook, output string){
	"2. Describe the gateway: spa-server init --address gw.example.net --service ssh=tcp/22 " +
		"--state /var/lib/spa": (*runbook).hurry,
	"4. Try it with a way back: alice$ ssh gw.example.net":                              (*runbook).confirmed,
	"5. Make it permanent: systemctl enable --now spa-guard.service spa-server.service": (*runbook).dark,
	"5. Make it permanent: alice$ ssh gw true":                                          (*runbook).dark,
	"Users: spa-keygen list":                                                            (*runbook).listed,
	"Users: spa-keygen show bob":                                                        (*runbook).bob,
	"Users: spa-keygen revoke bob":                                                      (*runbook).bobStays,
	"Users: spa-server revoke bob --cut":                                                (*runbook).bobIsGone,
	"New keys: alice$ spa-client open ssh --host gw":                                    (*runbook).open,
	"Status: alice$ spa-client doctor --host gw":                                        (*runbook).watched,
	"The second door: spa-server run --confirm 5m --recovery door":                      (*runbook).dark,
	"The second door: alice$ ssh gw.example.net":                                        (*runbook).confirmed,
	"The second door: spa-keygen show door":                                             (*runbook).doorLeft,
	"I am locked out: spa-server teardown":                                              (*runbook).everybody,
	"I am locked out: alice$ ssh gw.example.net":                                        (*runbook).confirmed,
	"Backup: umask 077; tar -C / -czf spa-backup.tgz etc/spa/server.toml etc/spa/gate.key " +
		"etc/spa/clients": (*runbook).lost,
	"Restore: systemctl enable --now spa-guard.service spa-server.service": (*runbook).dark,
	"Restore: alice$ spa-client open ssh --host gw --timeout 1m":           (*runbook).open,
	"Upgrade: systemctl restart spa-server.service":                        (*runbook).livedOn,
	"Uninstall: spa-server teardown":                                       (*runbook).everybody,
	"Uninstall: rm -r /etc/spa /var/lib/spa":                               (*runbook).nothingLeft,
}

// TestRunbook runs every command of README.md in order, as written: on a host with its own sshd, files and users, and
// on Alice's machine. units replaces systemctl.
func TestRunbook(t *testing.T) {
	lab.NeedRoot(t) // useradd, and the server becomes another user
	r := newRunbook(t)
	for _, s := range steps(t, "README.md") {
		name := s.heading + ": " + s.command
		if s.home {
			name = s.heading + ": " + prompt + s.command
		}
		output := r.follow(s)
		for _, line := range s.prints {
			if !shows(output, line) {
				t.Errorf("README.md:%d: got %q, want it to say %q", s.line, output, line)
			}
		}
		if see := after[name]; see != nil {
			r.ran[name] = true
			see(r, output)
		}
		if t.Failed() {
			t.Fatalf("README.md:%d: after %s", s.line, s.command)
		}
	}
	for name := range after {
		if !r.ran[name] {
			t.Errorf("the page no longer has %q", name)
		}
	}
}

func newRunbook(t *testing.T) *runbook {
	t.Helper()
	r := &runbook{t: t, ran: make(map[string]bool)}
	client, host := lab.Pair(t)
	goTool := lab.Value(exec.LookPath("go"))(t)
	path := "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + filepath.Dir(goTool)
	bin, home := t.TempDir(), t.TempDir()
	id := 20000 + os.Getpid()%40000 // userdel refuses if the uid runs a process anywhere on the machine
	r.bastion = newMachine(t, host, source(t), bin, map[string]string{
		"passwd": "root:x:0:0:root:/:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nalice:x:1000:1000::/:/bin/sh\n",
		"group":  "root:x:0:\nnogroup:x:65534:\nalice:x:1000:\n",
		"shadow": "root:*:20000::::::\nsshd:*:20000::::::\nalice:*:20000::::::\n",
		"login.defs": fmt.Sprintf("USERGROUPS_ENAB yes\nSYS_UID_MIN %d\nSYS_UID_MAX %[1]d\nSYS_GID_MIN "+
			"%[1]d\nSYS_GID_MAX %[1]d\n", id),
		"hosts": "127.0.0.1 localhost\n192.0.2.1 gw.example.net\n",
	})
	r.bastion.env = []string{path}
	r.home = newMachine(t, client, t.TempDir(), bin, map[string]string{
		"passwd": "alice:x:0:0::" + home + ":/bin/sh\n",
		"group":  "alice:x:0:\n",
		"hosts":  "127.0.0.1 localhost\n192.0.2.1 gw.example.net\n",
	})
	r.home.env = []string{path, "HOME=" + home, "XDG_CONFIG_HOME="}
	r.units = &units{m: r.bastion, runs: make(map[string]*process)}
	r.sshd(home)
	return r
}

// sshd runs the real one on the bastion, as before Sallyport; Alice logs in with her own key.
func (r *runbook) sshd(home string) {
	r.t.Helper()
	daemon := lab.NeedProgram(r.t, "sshd", "apt-get install openssh-server")
	lab.NeedProgram(r.t, "ssh", "apt-get install openssh-client")
	ssh := filepath.Join(home, ".ssh")
	lab.Must(r.t, os.Mkdir(ssh, 0o700))
	keys := r.t.TempDir()
	for _, path := range []string{filepath.Join(keys, "host"), filepath.Join(ssh, "id_ed25519")} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput(); err != nil {
			r.t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	// accept-new: she knew the host's key before.
	lab.Must(r.t, os.WriteFile(filepath.Join(ssh, "config"), []byte("BatchMode yes\nStrictHostKeyChecking accept-new\n"),
		0o600))
	lab.Must(r.t, copyFile(filepath.Join(ssh, "id_ed25519.pub"), filepath.Join(r.bastion.files["/run"], "alice.pub")))
	config := filepath.Join(keys, "sshd_config")
	lab.Must(r.t, os.WriteFile(config, fmt.Appendf(nil, "HostKey %s\nAuthorizedKeysFile /run/alice.pub\nStrictModes "+
		"no\nUsePAM no\nPidFile none\nLoginGraceTime 0\n",
		filepath.Join(keys, "host")), 0o600))
	lab.Must(r.t, os.Mkdir(filepath.Join(r.bastion.files["/run"], "sshd"), 0o755))
	server := r.bastion.start(r.t, "exec "+daemon+" -D -e -f "+config)
	lab.Eventually(r.t, "sshd to listen", func() bool {
		if server.ended() {
			r.t.Fatalf("sshd ended:\n%s", server.said(r.t))
		}
		return r.reaches("192.0.2.3")
	})
}

// follow runs a step and returns its output.
func (r *runbook) follow(s step) string {
	r.t.Helper()
	m := r.bastion
	if s.home {
		m = r.home
		r.carry(s.command)
	} else {
		r.interrupt() // continuing at the bastion's prompt takes a Ctrl-C
	}
	switch command := strings.Fields(s.command); {
	case command[0] == "systemctl":
		r.units.systemctl(r.t, command[1:])
		return ""
	case strings.HasPrefix(s.command, "spa-server run"), s.command == "spa-server watch":
		r.foreground = m.start(r.t, "exec "+s.command)
		if command[1] == "run" {
			lab.Eventually(r.t, "the server to be ready", func() bool {
				return r.foreground.ended() || strings.Contains(r.foreground.said(r.t), "msg=ready")
			})
		}
		if r.foreground.ended() {
			r.t.Fatalf("README.md:%d: %s has ended:\n%s", s.line, s.command, r.foreground.said(r.t))
		}
		return ""
	}
	out, err := m.run(r.t, s.command)
	if err != nil {
		r.t.Fatalf("README.md:%d: %s: %v\n%s", s.line, s.command, err, out)
	}
	return out
}

// carry takes a token home.
func (r *runbook) carry(command string) {
	r.t.Helper()
	if strings.Contains(command, "door.page |") {
		lab.Must(r.t, copyFile(filepath.Join(r.bastion.dir, "door.page"), filepath.Join(r.home.dir, "door.page")))
	}
	token := filepath.Join(r.bastion.dir, "alice.token")
	if !strings.HasPrefix(command, "spa-client import") {
		return
	}
	lab.Must(r.t, copyFile(token, filepath.Join(r.home.dir, "alice.token")))
}

// interrupt is Ctrl-C: the daemon exits cleanly, and a command that only watches exits with 130.
func (r *runbook) interrupt() {
	r.t.Helper()
	p := r.foreground
	if p == nil {
		return
	}
	r.foreground = nil
	if code := p.stop(syscall.SIGINT); code != 0 && code != 130 {
		r.t.Errorf("after Ctrl-C: exit %d\n%s", code, p.said(r.t))
	}
}

func (r *runbook) reaches(from string) bool {
	conn, err := lab.Dial(r.home.host, from, "192.0.2.1:22", 400*time.Millisecond)
	if err == nil {
		conn.Close()
	}
	return err == nil
}
