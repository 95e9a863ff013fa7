package ssh

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// session is a user's machine and a gateway with a real sshd behind its guard.
type session struct {
	t       *testing.T
	gateway *lab.Gateway
	name    string // that ssh calls it by
	dir     string // keys and configuration
	remote  string // the sshd's view of root's home
}

// The block that ssh-config prints is all that ssh, and programs that run ssh, need.
func TestSSH(t *testing.T) {
	lab.NeedRoot(t) // sshd changes its user
	bin := lab.Programs(t)
	for name, flags := range map[string][]string{"joined": nil, "fdpass": {"--fdpass"}} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, bin)
			s.dark()
			s.configure(append([]string{"--host", "gw"}, flags...)...)
			t.Run("ssh", s.ssh)
			t.Run("status", s.status)
			t.Run("scp", s.scp)
			t.Run("rsync", s.rsync)
			t.Run("git", s.git)
			t.Run("parallel", s.parallel)
		})
	}
}

func newSession(t *testing.T, bin string, settings ...string) *session {
	t.Helper()
	s := &session{t: t, name: "gw", dir: t.TempDir(), remote: t.TempDir()}
	s.gateway = lab.NewGateway(t, bin, "ssh=tcp/22")
	s.remember(4096)
	for _, change := range settings {
		s.must(s.gateway.Command("spa-server", "set", "--config", s.gateway.Config, change))
	}
	s.sshd()
	s.gateway.Start()
	return s
}

// remember sets how many packets of a client the gateway remembers: on a slow machine the sessions of parallel send
// many before they are answered.
func (s *session) remember(packets int) {
	s.t.Helper()
	path := filepath.Join(s.gateway.Config, "server.toml")
	before := lab.Value(os.ReadFile(path))(s.t)
	now := regexp.MustCompile(`(?m)^live_nonces = \d+`).ReplaceAllString(string(before),
		fmt.Sprint("live_nonces = ", packets))
	if now == string(before) {
		s.t.Fatalf("no live_nonces in\n%s", before)
	}
	lab.Must(s.t, os.WriteFile(path, []byte(now), 0o640))
}

// sshd runs the system's sshd with its own keys and configuration. Other directories that it writes to, /run and root's
// home, are mounted over.
func (s *session) sshd() {
	s.t.Helper()
	path := lab.NeedProgram(s.t, "sshd", "apt-get install openssh-server openssh-client rsync git")
	lab.NeedProgram(s.t, "ssh", "apt-get install openssh-client")
	for _, name := range []string{"host", "user"} {
		s.must(exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", s.file(name)))
	}
	s.write("sshd_config", `Port 22
HostKey `+s.file("host")+`
AuthorizedKeysFile `+s.file("user.pub")+`
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 200
LoginGraceTime 0
Subsystem sftp internal-sftp
`)
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `
mount -t tmpfs none /run && mkdir -m 755 /run/sshd && mount --bind "$0" /root && exec "$1" -D -e -f "$2"`,
		s.remote, path, s.file("sshd_config"))
	var said bytes.Buffer
	cmd.Stderr = &said
	lab.Must(s.t, s.gateway.Host.Start(cmd))
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("sshd:\n%s", said.String())
		}
	})
	lab.Eventually(s.t, "sshd to listen", func() bool {
		conn, err := lab.Dial(s.gateway.Host, "", "127.0.0.1:22", lab.Patience)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// dark checks that the sshd cannot be reached without a knock.
func (s *session) dark() {
	s.t.Helper()
	if conn, err := lab.Dial(s.gateway.Client, "", "192.0.2.1:22", 300*time.Millisecond); err == nil {
		conn.Close()
		s.t.Fatal("sshd answers without a knock")
	}
}

// configure writes ssh's configuration: the printed block, and where the test keeps its keys. The gateway's key is
// known by its address or its name, as before Sallyport.
func (s *session) configure(flags ...string) {
	s.t.Helper()
	cmd := s.gateway.Command("spa-client", append([]string{"ssh-config"}, flags...)...)
	cmd.Env = s.env()
	block, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("spa-client ssh-config: %v", err)
	}
	s.write("config", string(block)+`
Host *
	User root
	IdentityFile `+s.file("user")+`
	IdentitiesOnly yes
	UserKnownHostsFile `+s.file("known_hosts")+`
	GlobalKnownHostsFile none
	StrictHostKeyChecking yes
	BatchMode yes
`)
	key := lab.Value(os.ReadFile(s.file("host.pub")))(s.t)
	s.write("known_hosts", "192.0.2.1,web7.example.net "+string(key))
}

func (s *session) ssh(t *testing.T) {
	cmd := s.command("ssh", "-F", s.file("config"), s.name, "cat; echo $SSH_CONNECTION")
	cmd.Stdin = strings.NewReader("hello\n")
	out, code := lab.Run(t, s.gateway.Client, cmd)
	if code != 0 || !strings.HasPrefix(out, "hello\n192.0.2.2 ") {
		t.Errorf("exit %d: %q", code, out)
	}
}

// status checks that the remote command's exit status arrives.
func (s *session) status(t *testing.T) {
	out, code := lab.Run(t, s.gateway.Client, s.command("ssh", "-F", s.file("config"), s.name, "exit 42"))
	if code != 42 || out != "" {
		t.Errorf("exit %d, want 42: %q", code, out)
	}
}

func (s *session) scp(t *testing.T) {
	big := s.random("big", 10<<20)
	s.run(t, "scp", "-F", s.file("config"), s.file("big"), s.name+":big")
	s.run(t, "scp", "-F", s.file("config"), s.name+":big", s.file("back"))
	for _, path := range []string{filepath.Join(s.remote, "big"), s.file("back")} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, big) {
			t.Errorf("%s: %d bytes, %v; want the %d that were sent", path, len(got), err, len(big))
		}
	}
}

func (s *session) rsync(t *testing.T) {
	lab.NeedProgram(t, "rsync", "apt-get install rsync")
	tree := filepath.Join(s.dir, "tree")
	lab.Must(t, os.MkdirAll(tree, 0o700))
	for i := range 20 {
		s.random(fmt.Sprintf("tree/%d", i), 10<<10)
	}
	s.run(t, "rsync", "-a", "-e", "ssh -F "+s.file("config"), tree+"/", s.name+":tree/")
	s.run(t, "diff", "-r", tree, filepath.Join(s.remote, "tree"))
}

func (s *session) git(t *testing.T) {
	lab.NeedProgram(t, "git", "apt-get install git")
	repo := filepath.Join(s.remote, "repo")
	s.run(t, "git", "init", "-q", repo)
	s.run(t, "git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@example.net", "commit", "-q",
		"--allow-empty", "-m", "first")
	clone := filepath.Join(s.dir, "clone")
	s.run(t, "git", "clone", "-q", "ssh://"+s.name+"/root/repo", clone)
	if out := s.run(t, "git", "-C", clone, "log", "--format=%s"); out != "first\n" {
		t.Errorf("the clone has %q", out)
	}
}

// parallel opens many connections at once with one key, as deployment tools do.
func (s *session) parallel(t *testing.T) {
	const sessions = 50
	var all sync.WaitGroup
	failed := make(chan string, sessions)
	for i := range sessions {
		all.Go(func() {
			want := fmt.Sprintf("session %d\n", i)
			out, code := lab.Run(t, s.gateway.Client, s.command("ssh", "-F", s.file("config"), s.name,
				strings.TrimSpace("echo "+want)))
			if code != 0 || out != want {
				failed <- fmt.Sprintf("exit %d: %q", code, out)
			}
		})
	}
	all.Wait()
	close(failed)
	for f := range failed {
		t.Error(f)
	}
}

func (s *session) file(name string) string { return filepath.Join(s.dir, name) }

func (s *session) write(name, text string) {
	s.t.Helper()
	lab.Must(s.t, os.WriteFile(s.file(name), []byte(text), 0o600))
}

func (s *session) random(name string, size int) []byte {
	s.t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	s.write(name, string(b))
	return b
}

// env returns an environment with the programs in its PATH, and nothing of the user's own.
func (s *session) env() []string {
	return []string{"PATH=" + s.gateway.Bin + ":" + os.Getenv("PATH"), "HOME=" + s.dir, "SHELL=/bin/sh",
		"GIT_SSH_COMMAND=ssh -F " + s.file("config"), "GIT_CONFIG_GLOBAL=/dev/null"}
}

func (s *session) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = s.env()
	return cmd
}

// run runs a program on the user's machine and returns its output.
func (s *session) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, code := lab.Run(t, s.gateway.Client, s.command(name, args...))
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s\nserver:\n%s", name, strings.Join(args, " "), code, out, s.gateway.Log())
	}
	return out
}

func (s *session) must(cmd *exec.Cmd) {
	s.t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}
