package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Programs builds spa-server, spa-client, spa-keygen and the named packages, and returns their directory.
func Programs(t testing.TB, packages ...string) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", append([]string{"build", "-o", dir, "sallyport/cmd/..."}, packages...)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the programs: %v\n%s", err, out)
	}
	return dir
}

// Gateway is the real programs: spa-server on one host of [Pair] and spa-client on the other, set up by spa-server init
// and spa-keygen new.
type Gateway struct {
	Client, Host *Host
	Bin          string // the directory of the programs
	Config       string // of spa-server
	Home         string // --config of spa-client: the host gw

	t      testing.TB
	server *exec.Cmd
	log    *Buffer
}

// NewGateway initialises a gateway at 192.0.2.1 (and 2001:db8::1) with services such as ssh=tcp/22, and a client alice
// that may open them all. Its server is not running yet.
func NewGateway(t testing.TB, bin string, services ...string) *Gateway {
	t.Helper()
	client, host := Pair(t)
	return NewGatewayAt(t, bin, client, host, "192.0.2.1", services...)
}

// NewGatewayAt initialises a gateway as [NewGateway] does, at an address of a host that a client's host reaches.
func NewGatewayAt(t testing.TB, bin string, client, host *Host, address string, services ...string) *Gateway {
	t.Helper()
	g := &Gateway{t: t, Bin: bin, Config: filepath.Join(t.TempDir(), "etc"), Home: filepath.Join(t.TempDir(), "home"),
		log: new(Buffer), Client: client, Host: host}
	args := []string{"init", "--config", g.Config, "--address", address}
	var names []string
	for _, s := range services {
		args = append(args, "--service", s)
		name, _, _ := strings.Cut(s, "=")
		names = append(names, name)
	}
	g.must(args...)
	token := g.Enrol("alice", strings.Join(names, ","))
	g.Import(g.Home, token)
	return g
}

// Enrol makes a client that may open some services and returns its token.
func (g *Gateway) Enrol(name, allow string) string {
	g.t.Helper()
	out, err := exec.Command(filepath.Join(g.Bin, "spa-keygen"), "new", name, "--allow", allow,
		"--config", g.Config).Output()
	if err != nil {
		g.t.Fatalf("spa-keygen new: %v", err)
	}
	return string(out)
}

// Import adds a token as a host to a client's directory.
func (g *Gateway) Import(home, token string) {
	g.t.Helper()
	cmd := exec.Command(filepath.Join(g.Bin, "spa-client"), "import", "--config", home, "--replace", "-")
	cmd.Stdin = strings.NewReader(token)
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("spa-client import: %v\n%s", err, out)
	}
}

func (g *Gateway) must(args ...string) {
	g.t.Helper()
	if out, err := exec.Command(filepath.Join(g.Bin, "spa-server"), args...).CombinedOutput(); err != nil {
		g.t.Fatalf("spa-server %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Start runs the server until the test ends, and returns when it is ready.
func (g *Gateway) Start() {
	g.t.Helper()
	g.server = exec.Command(filepath.Join(g.Bin, "spa-server"), "run", "--config", g.Config)
	g.server.Stdout, g.server.Stderr = g.log, g.log
	Must(g.t, g.Host.Start(g.server))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.server.Wait() // the log shows how it ended
	}()
	g.t.Cleanup(func() {
		_ = g.server.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	if !poll(Patience, func() bool { return strings.Contains(g.Log(), "msg=ready") || isClosed(ended) }) ||
		isClosed(ended) {
		g.t.Fatalf("the server did not get ready:\n%s", g.Log())
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Log returns the server's output.
func (g *Gateway) Log() string { return g.log.String() }

// Command returns a command of the gateway's programs; spa-client gets --config.
func (g *Gateway) Command(program string, args ...string) *exec.Cmd {
	config := g.Config
	if program == "spa-client" {
		config = g.Home
	}
	return exec.Command(filepath.Join(g.Bin, program), append([]string{"--config", config}, args...)...)
}

// Run runs a command on a host to its end and returns its output on both streams and its exit code.
func Run(t testing.TB, on *Host, cmd *exec.Cmd) (string, int) {
	t.Helper()
	var out Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	Must(t, on.Start(cmd))
	_ = cmd.Wait() // the exit code matters
	return out.String(), cmd.ProcessState.ExitCode()
}
