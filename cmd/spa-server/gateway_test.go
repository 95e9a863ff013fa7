package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/setup"
)

// bin is the directory of the programs, built once for all tests.
var bin string

func TestMain(m *testing.M) {
	firewall.Helper()
	lab.Become()
	becomeServer()
	bin = os.Getenv("SPA_TEST_BIN")
	built := bin == "" // set: this is the run in a user namespace of lab.Reexec
	if built {
		bin = build()
		os.Setenv("SPA_TEST_BIN", bin)
	}
	flag.Set("test.parallel", "4") // parallel tests wait for packets, not for the processor
	_ = lab.Reexec()               // as lab.Main
	code := m.Run()
	if built {
		os.RemoveAll(bin)
	}
	os.Exit(code)
}

// build builds the programs and returns their directory.
func build() string {
	dir, err := os.MkdirTemp("", "spa-test")
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("go", "build", "-o", dir, "sallyport/cmd/...")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, out)
		os.Exit(1)
	}
	return dir
}

// gateway is a host with a spa-server's files, a client host beside it, and helpers for tests.
type gateway struct {
	t            testing.TB
	client, host *lab.Host
	dir, home    string
	accounts     string // see withSystemUser
	server       *process
}

// newGateway initialises a gateway with ssh=tcp/22 and the client alice, not running yet.
func newGateway(t testing.TB) *gateway {
	t.Helper()
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc"), home: filepath.Join(t.TempDir(), "home")}
	g.client, g.host = lab.Pair(t)
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22",
		"--service", "web=tcp/80")
	g.enrol("alice", "ssh")
	return g
}

// enrol makes a client and imports its token into its own home; alice's is g.home.
func (g *gateway) enrol(name, allow string) *keys.Profile {
	g.t.Helper()
	token := g.must("spa-keygen", "new", name, "--allow", allow, "--config", g.dir)
	profile, err := keys.ParseToken(token)
	if err != nil {
		g.t.Fatalf("the token of spa-keygen new: %v", err)
	}
	if name == "alice" {
		cmd := g.command("spa-client", "import", "--config", g.home, "-")
		cmd.Stdin = strings.NewReader(token)
		if out, err := cmd.CombinedOutput(); err != nil {
			g.t.Fatalf("spa-client import: %v\n%s", err, out)
		}
	}
	return profile
}

// give gives a directory of the test to the server's user, as packages do with its state, and gives the user access to
// it.
func (g *gateway) give(dir string) {
	g.t.Helper()
	uid, gid, err := sandbox.Becomes(setup.SystemUser)
	if err == nil {
		err = os.Chown(dir, uid, gid)
	}
	for above := filepath.Dir(dir); err == nil && above != filepath.Dir(os.TempDir()) &&
		above != filepath.Clean(os.TempDir()); above = filepath.Dir(above) {
		err = os.Chmod(above, 0o755)
	}
	lab.Must(g.t, err)
}

// handOver lets the server read a file that was written by hand.
func (g *gateway) handOver(path string) {
	g.t.Helper()
	_, gid, err := sandbox.Becomes(setup.SystemUser)
	if err == nil {
		err = errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o640))
	}
	lab.Must(g.t, err)
}

// profile reads alice's profile.
func (g *gateway) profile() *keys.Profile {
	g.t.Helper()
	profile := lab.Value(keys.ReadProfile(filepath.Join(g.home, "hosts", "gw.toml")))(g.t)
	return profile
}

func (g *gateway) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, program), args...)
	if g.accounts != "" {
		return seeing(g.accounts, cmd)
	}
	return cmd
}

// guardBy sets the backend of the firewall.
func (g *gateway) guardBy(backend string) {
	g.t.Helper()
	if backend == "iptables" {
		lab.NeedProgram(g.t, "iptables", "apt-get install iptables")
	}
	g.set("firewall", "backend", strconv.Quote(backend))
}

// must runs a program outside any host and returns its output.
func (g *gateway) must(program string, args ...string) string {
	g.t.Helper()
	var stderr bytes.Buffer
	cmd := g.command(program, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// run runs a program inside a host to its end and returns its output, both streams, and exit code.
func (g *gateway) run(on *lab.Host, program string, args ...string) (string, int) {
	g.t.Helper()
	var out bytes.Buffer
	cmd := g.command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	lab.Must(g.t, on.Start(cmd))
	cmd.Wait()
	return out.String(), cmd.ProcessState.ExitCode()
}

// open runs spa-client as alice. If no answer should come, --timeout says how long to wait.
func (g *gateway) open(args ...string) (string, int) {
	g.t.Helper()
	return g.run(g.client, "spa-client", append([]string{"open", "ssh", "--host", "gw", "--config", g.home, "--timeout",
		lab.Patience.String()}, args...)...)
}

// mustOpen opens ssh as alice.
func (g *gateway) mustOpen(args ...string) string {
	g.t.Helper()
	out, code := g.open(args...)
	if code != 0 {
		g.t.Fatalf("spa-client open: exit %d\n%s\nserver:\n%s", code, out, g.server.log())
	}
	return out
}

// process is a running spa-server and its output.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	mu    sync.Mutex
	lines []string
}

func (p *process) log() string {
	if p == nil {
		return "(not started)"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// start starts the server in the gateway and waits until it is ready.
func (g *gateway) start(args ...string) {
	g.t.Helper()
	g.launch(g.command("spa-server", append([]string{"run", "--config", g.dir}, args...)...))
	lab.Eventually(g.t, "the server to be ready or to end", func() bool {
		return strings.Contains(g.server.log(), "msg=ready") || g.server.done()
	})
	if g.server.done() {
		g.t.Fatalf("the server ended:\n%s", g.server.log())
	}
}

// launch starts a server and collects its lines.
func (g *gateway) launch(cmd *exec.Cmd) {
	g.t.Helper()
	out, w, err := os.Pipe()
	lab.Must(g.t, err)
	cmd.Stdout, cmd.Stderr = w, w
	lab.Must(g.t, g.host.Start(cmd))
	w.Close()
	p := &process{cmd: cmd, ended: make(chan struct{})}
	g.server = p
	go func() {
		defer out.Close()
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, scanner.Text())
			p.mu.Unlock()
		}
		cmd.Wait()
		close(p.ended)
	}()
	g.t.Cleanup(func() {
		p.stop(syscall.SIGKILL)
		if denied := syscall.EPERM.Error(); strings.Contains(p.log(), denied) {
			g.t.Errorf("the server was not permitted what it does:\n%s", p.log())
		}
	})
}

func (p *process) done() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// stop sends a signal and waits for the end; it returns the exit code, -1 after a signal.
func (p *process) stop(sig syscall.Signal) int {
	p.cmd.Process.Signal(sig)
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// serve runs an echo server in the gateway.
func (g *gateway) serve(addr string) {
	g.t.Helper()
	_, err := lab.EchoServer(g.host, addr)
	lab.Must(g.t, err)
}

// sender returns the client half of a profile.
func sender(p *keys.Profile) spa.Sender {
	return spa.Sender{Server: p.ServerID, Gate: p.Gate, ID: p.ID, Key: p.Key}
}

// request returns an open request for ssh, stamped now.
func request() spa.Request {
	return spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now(),
		Services: []service.Service{{Name: "ssh"}}}
}

func (g *gateway) seal(r spa.Request, s spa.Sender) []byte {
	g.t.Helper()
	packet := lab.Value(spa.Seal(r, s))(g.t)
	return packet
}

// socket opens a UDP socket on the client host, bound to one of its addresses.
func (g *gateway) socket(from string) *net.UDPConn {
	g.t.Helper()
	var conn *net.UDPConn
	lab.Must(g.t, g.client.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)))
		return err
	}))
	g.t.Cleanup(func() { conn.Close() })
	return conn
}

// send sends a packet from an address of the client to the gateway's knock port.
func (g *gateway) send(from string, packet []byte) *net.UDPConn {
	g.t.Helper()
	conn := g.socket(from)
	_, err := conn.WriteToUDPAddrPort(packet, knockAddr(from))
	lab.Must(g.t, err)
	return conn
}

// knockAddr returns the gateway's knock port in the family of an address.
func knockAddr(from string) netip.AddrPort {
	if netip.MustParseAddr(from).Is6() {
		return netip.MustParseAddrPort("[2001:db8::1]:62201")
	}
	return netip.MustParseAddrPort("192.0.2.1:62201")
}

// exchange sends a packet and returns the receipt, nil if none comes within the time.
func (g *gateway) exchange(from string, packet []byte, s spa.Sender, within time.Duration) *spa.Receipt {
	g.t.Helper()
	return g.receipt(g.send(from, packet), packet, s, within)
}

// knockAt is exchange with another address of the gateway.
func (g *gateway) knockAt(from, to string, packet []byte, s spa.Sender, within time.Duration) *spa.Receipt {
	g.t.Helper()
	conn := g.socket(from)
	_, err := conn.WriteToUDPAddrPort(packet, netip.MustParseAddrPort(to))
	lab.Must(g.t, err)
	return g.receipt(conn, packet, s, within)
}

// receipt waits for the answer to a packet.
func (g *gateway) receipt(conn *net.UDPConn, packet []byte, s spa.Sender, within time.Duration) *spa.Receipt {
	g.t.Helper()
	conn.SetReadDeadline(time.Now().Add(within))
	var buf [2048]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return nil
	}
	receipt, err := spa.OpenReceipt(buf[:n], packet, s)
	if err != nil {
		g.t.Fatalf("the answer to a packet of %d bytes is no receipt (%d bytes)", len(packet), n)
	}
	return &receipt
}

// wantReceipt sends a packet and fails unless it is answered with the status.
func (g *gateway) wantReceipt(from string, packet []byte, s spa.Sender, want spa.Status) spa.Receipt {
	g.t.Helper()
	receipt := g.exchange(from, packet, s, lab.Patience)
	if receipt == nil {
		g.t.Fatalf("no receipt, want one that says %q\nserver:\n%s", want, g.server.log())
	}
	if receipt.Status != want {
		g.t.Fatalf("receipt says %q, want %q\nserver:\n%s", receipt.Status, want, g.server.log())
	}
	return *receipt
}

// settle returns once the server has processed all packets sent so far: bob, who may open only web, knocks and is
// answered.
func (g *gateway) settle(bob spa.Sender) {
	g.t.Helper()
	r := request()
	r.Services = []service.Service{{Name: "web"}}
	g.wantReceipt("192.0.2.9", g.seal(r, bob), bob, spa.Granted)
}

// auditLines returns the audit log.
func (g *gateway) auditLines() []map[string]any {
	g.t.Helper()
	data := lab.Value(os.ReadFile(filepath.Join(g.dir, "audit.jsonl")))(g.t)
	var lines []map[string]any
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // a line that is being written
		}
		var event map[string]any
		if err := json.Unmarshal(line, &event); err != nil {
			g.t.Fatalf("audit line %q: %v", line, err)
		}
		lines = append(lines, event)
	}
	return lines
}

// audited returns the verdicts of a client in the audit log.
func (g *gateway) audited(client string) []string {
	var verdicts []string
	for _, event := range g.auditLines() {
		if verdict, ok := event["verdict"].(string); ok && event["client"] == client { // acts have none
			verdicts = append(verdicts, verdict)
		}
	}
	return verdicts
}

// wantAudited is for clients simulated here, whose packets are all known. For spa-client use wantOutcomes: it retries a
// request that is not answered soon.
func (g *gateway) wantAudited(client string, want ...string) {
	g.t.Helper()
	if got := g.audited(client); !slices.Equal(got, want) {
		g.t.Errorf("audit log of %s: got %v, want %v", client, got, want)
	}
}

// wantOutcomes is wantAudited without retries.
func (g *gateway) wantOutcomes(client string, want ...string) {
	g.t.Helper()
	got := slices.DeleteFunc(g.audited(client), func(verdict string) bool { return verdict == "repeated" })
	if !slices.Equal(got, want) {
		g.t.Errorf("audit log of %s: got %v, want %v", client, got, want)
	}
}
