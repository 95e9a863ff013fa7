package container

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// machine is a gateway whose server runs in a container, with a client beside it.
type machine struct {
	t             *testing.T
	client, host  *lab.Host
	dir, settings string
}

// podman runs podman in the gateway. Its storage belongs to the test. It sees a file system of control groups of the
// current kind, whatever this machine has, and uses none.
func (m *machine) podman(args ...string) *exec.Cmd {
	script := `umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup; exec podman "$@"`
	storage := []string{"--root", filepath.Join(m.dir, "storage"), "--runroot", filepath.Join(m.dir, "run"),
		"--tmpdir", filepath.Join(m.dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
		"--events-backend", "none"}
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, "podman"}, append(storage, args...)...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(m.dir, "containers.conf"))
	return cmd
}

// inImage is the arguments that run a program of the image as the page does.
func (m *machine) inImage(capabilities string, args ...string) []string {
	run := []string{"run", "--rm", "--cgroups=disabled", "--network", "host", "--read-only", "--cap-drop", "all",
		"-v", m.settings + ":/etc/spa", "--cap-add", capabilities}
	return append(append(run, "--name", "spa", "spa"), args...)
}

func (m *machine) must(cmd *exec.Cmd) string {
	m.t.Helper()
	out, code := lab.Run(m.t, m.host, cmd)
	if code != 0 {
		m.t.Fatalf("%s: exit %d\n%s", strings.Join(cmd.Args, " "), code, out)
	}
	return out
}

// newMachine builds the image and sets the gateway up by it.
func newMachine(t *testing.T) *machine {
	t.Helper()
	lab.NeedRoot(t)
	lab.NeedProgram(t, "podman", "apt-get install podman crun")
	lab.NeedProgram(t, "unshare", "apt-get install util-linux")
	m := &machine{t: t, dir: t.TempDir()}
	m.client, m.host = lab.Pair(t)
	m.settings = filepath.Join(m.dir, "etc")
	source := filepath.Join(m.dir, "source")
	for _, dir := range []string{m.settings, filepath.Join(source, "examples"), filepath.Join(m.dir, "hosts")} {
		lab.Must(t, os.MkdirAll(dir, 0o755))
	}
	// The limits of this machine, which may not allow podman's own.
	lab.Must(t, os.WriteFile(filepath.Join(m.dir, "containers.conf"), []byte("[containers]\ndefault_ulimits = []\n"),
		0o644))
	for program, dir := range map[string]string{"spa-server": filepath.Join(source, "bin"),
		"spa-keygen": filepath.Join(source, "bin"), "spa-client": m.dir} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s", "-o", dir+"/", "sallyport/cmd/"+program)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	lab.Must(t, os.CopyFS(filepath.Join(source, "examples/container"), os.DirFS(".")))
	m.must(m.podman("build", "-q", "-t", "spa", "-f", filepath.Join(source, "examples/container/Containerfile"), source))
	const files = "CHOWN,DAC_OVERRIDE"
	m.must(m.podman(m.inImage(files, "spa-server", "init", "--address", "192.0.2.1", "--service", "ssh=tcp/22")...))
	token := m.must(m.podman(m.inImage(files, "spa-keygen", "new", "alice", "--allow", "ssh")...))
	profile, err := keys.ParseToken(token)
	if err == nil {
		err = keys.WriteProfile(filepath.Join(m.dir, "hosts"), profile, false)
	}
	if err != nil {
		t.Fatalf("the token: %v\n%s", err, token)
	}
	return m
}

// start starts the server's container and waits until it is ready. It returns a function that stops it.
func (m *machine) start(capabilities string) (stop func()) {
	m.t.Helper()
	log := lab.Value(os.Create(filepath.Join(m.dir, "log")))(m.t)
	cmd := m.podman(m.inImage(capabilities)...)
	cmd.Stdout, cmd.Stderr = log, log
	lab.Must(m.t, m.host.Start(cmd))
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	stop = func() {
		lab.Run(m.t, m.host, m.podman("kill", "spa"))
		<-ended
	}
	m.t.Cleanup(stop)
	lab.Eventually(m.t, "the server to be ready", func() bool {
		text, _ := os.ReadFile(log.Name())
		select {
		case <-ended:
			m.t.Fatalf("the container ended:\n%s", text)
		default:
		}
		return strings.Contains(string(text), "msg=ready")
	})
	return stop
}

// knock runs a command of spa-client, and returns what it says if it fails.
func (m *machine) knock(command string) string {
	m.t.Helper()
	out, code := lab.Run(m.t, m.client, exec.Command(filepath.Join(m.dir, "spa-client"), command, "ssh", "--host", "gw",
		"--config", m.dir, "--timeout", lab.Patience.String()))
	if code != 0 {
		return out
	}
	return ""
}

// reaches reports whether an address of the client's host gets through to the guarded port.
func (m *machine) reaches(from string, within time.Duration) bool {
	var conn net.Conn
	err := m.client.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: within}
		conn, err = d.Dial("tcp", "192.0.2.1:22")
		return err
	})
	if err == nil {
		conn.Close()
	}
	return err == nil
}

const silence = 700 * time.Millisecond

// TestContainer: with a packet socket, and with a bound socket and without NET_RAW, a knock opens the host's port for
// its sender alone, the guard outlives the container, and teardown takes it away.
func TestContainer(t *testing.T) {
	m := newMachine(t)
	_, err := lab.EchoServer(m.host, ":22")
	lab.Must(t, err)
	const capabilities = "NET_ADMIN,SETUID,SETGID,SETPCAP,CHOWN,DAC_OVERRIDE"
	for _, mode := range []string{"sniff", "udp"} {
		path := filepath.Join(m.settings, "server.toml")
		text := lab.Value(os.ReadFile(path))(t)
		changed := strings.Replace(string(text), `mode = "sniff"`, `mode = "`+mode+`"`, 1)
		lab.Must(t, os.WriteFile(path, []byte(changed), 0o640))
		with := capabilities
		if mode == "sniff" {
			with += ",NET_RAW"
		}
		stop := m.start(with)
		if m.reaches("192.0.2.2", silence) {
			t.Errorf("%s: the port is open before the knock", mode)
		}
		if failure := m.knock("open"); failure != "" {
			t.Errorf("%s: %s", mode, failure)
		}
		if !m.reaches("192.0.2.2", lab.Patience) || m.reaches("192.0.2.3", silence) {
			t.Errorf("%s: the port is not open for the sender alone", mode)
		}
		status := m.must(m.podman("exec", "spa", "spa-server", "status"))
		if !strings.Contains(status, "user spa, CAP_NET_ADMIN, no_new_privs true") {
			t.Errorf("%s: status:\n%s", mode, status)
		}
		if failure := m.knock("close"); failure != "" {
			t.Errorf("%s: %s", mode, failure)
		}
		stop()
		if m.reaches("192.0.2.3", silence) {
			t.Errorf("%s: the port is open after the container", mode)
		}
	}
	m.must(m.podman(m.inImage("NET_ADMIN", "spa-server", "teardown")...))
	if !m.reaches("192.0.2.3", lab.Patience) {
		t.Error("the guard is left after teardown")
	}
}
