package compare

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const (
	packages = "apt-get install wireguard-tools wireguard-go iproute2"
	overWG   = "198.51.100.1:22" // a port of the gateway, at its address in the tunnel
	outside  = "192.0.2.1:22"    // the same port, from the internet
)

// tunnel is a gateway and a laptop with the page's WireGuard configurations.
type tunnel struct {
	t               *testing.T
	gateway         *lab.Gateway
	private, public map[string]string // keys, by machine
	home            string            // the laptop's
}

// TestWireGuard: a laptop with the right WireGuard key gets no handshake before a knock. PreUp knocks, and the tunnel
// outlives its grant.
func TestWireGuard(t *testing.T) {
	w := newTunnel(t, "wireguard=udp/51820")
	w.gateway.Start()
	w.up(w.gateway.Host, "gateway", w.config(0))

	early := regexp.MustCompile(`(?m)^PreUp.*\n`).ReplaceAllString(w.config(1), "")
	w.up(w.gateway.Client, "laptop", early)
	if w.reaches(overWG, 3*time.Second) || w.handshakes() {
		t.Fatal("the tunnel is up without a knock")
	}
	w.quick(w.gateway.Client, "laptop", "down")

	w.up(w.gateway.Client, "laptop", w.config(1))
	lab.Eventually(t, "the tunnel to carry a connection", func() bool { return w.reaches(overWG, time.Second) })
	if !w.handshakes() {
		t.Error("a connection without a handshake: it did not go through the tunnel")
	}
	w.client("close", "wireguard", "--host", "gw")
	if !w.reaches(overWG, lab.Patience) {
		t.Error("the tunnel did not outlive its grant")
	}
}

// TestMesh: over a trusted interface ssh needs no knock, from outside it does, and once the tunnel is down a knock is
// the way in.
func TestMesh(t *testing.T) {
	w := newTunnel(t, "ssh=tcp/22")
	w.trust()
	w.up(w.gateway.Host, "gateway", w.config(0))
	w.gateway.Start()
	w.up(w.gateway.Client, "laptop", regexp.MustCompile(`(?m)^PreUp.*\n`).ReplaceAllString(w.config(1), ""))

	lab.Eventually(t, "the port to be reachable over the mesh", func() bool { return w.reaches(overWG, time.Second) })
	if w.reaches(outside, 300*time.Millisecond) {
		t.Error("the port is open from outside without a knock")
	}
	w.quick(w.gateway.Host, "gateway", "down")
	if w.reaches(overWG, time.Second) {
		t.Fatal("the tunnel is down and still carries connections")
	}
	w.client("open", "ssh", "--host", "gw")
	if !w.reaches(outside, lab.Patience) {
		t.Error("the port did not open for a knock")
	}
}

func newTunnel(t *testing.T, service string) *tunnel {
	t.Helper()
	lab.NeedRoot(t) // /dev/net/tun
	wg := lab.NeedProgram(t, "wg", packages)
	for _, program := range []string{"wg-quick", "ip", "bash"} {
		lab.NeedProgram(t, program, packages)
	}
	if exec.Command("modprobe", "-n", "wireguard").Run() != nil {
		lab.NeedProgram(t, "wireguard-go", packages)
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			lab.KernelLacks(t, "WireGuard, and /dev/net/tun for wireguard-go")
		}
	}
	name, _, _ := strings.Cut(service, "=")
	w := &tunnel{t: t, gateway: lab.NewGateway(t, lab.Programs(t), service), home: t.TempDir(),
		private: make(map[string]string), public: make(map[string]string)}
	w.gateway.Import(filepath.Join(w.home, "spa"), w.gateway.Enrol("laptop", name))
	for _, machine := range []string{"gateway", "laptop"} {
		key, err := exec.Command(wg, "genkey").Output()
		if err != nil {
			t.Fatalf("wg genkey: %v", err)
		}
		public := exec.Command(wg, "pubkey")
		public.Stdin = strings.NewReader(string(key))
		derived, err := public.Output()
		if err != nil {
			t.Fatalf("wg pubkey: %v", err)
		}
		w.private[machine], w.public[machine] = strings.TrimSpace(string(key)), strings.TrimSpace(string(derived))
		lab.Must(t, os.MkdirAll(filepath.Join(w.home, machine, "run", "wireguard"), 0o700))
	}
	echo := lab.Value(lab.EchoServer(w.gateway.Host, ":22"))(t)
	t.Cleanup(func() { echo.Close() })
	return w
}

// block returns one of the page's blocks in a language.
func block(t *testing.T, language string, n int) string {
	t.Helper()
	page := lab.Value(os.ReadFile("README.md"))(t)
	all := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllSubmatch(page, -1)
	if len(all) != 2 {
		t.Fatalf("README.md has %d blocks of %s, want 2", len(all), language)
	}
	return string(all[n][1])
}

// config returns the page's WireGuard configuration (0: the gateway's, 1: the laptop's), with keys.
func (w *tunnel) config(n int) string {
	return strings.NewReplacer(
		"GATEWAY-PRIVATE-KEY", w.private["gateway"], "LAPTOP-PRIVATE-KEY", w.private["laptop"],
		"GATEWAY-PUBLIC-KEY", w.public["gateway"], "LAPTOP-PUBLIC-KEY", w.public["laptop"],
		"gw.example.net", "192.0.2.1").Replace(block(w.t, "ini", n))
}

// trust adds the page's setting to server.toml.
func (w *tunnel) trust() {
	w.t.Helper()
	path := filepath.Join(w.gateway.Config, "server.toml")
	before := lab.Value(os.ReadFile(path))(w.t)
	_, setting, _ := strings.Cut(block(w.t, "toml", 1), "[firewall]\n")
	now := regexp.MustCompile(`(?m)^trusted_interfaces = .*\n`).ReplaceAllString(string(before), setting)
	if now == string(before) {
		w.t.Fatalf("no trusted_interfaces in\n%s", before)
	}
	lab.Must(w.t, os.WriteFile(path, []byte(now), 0o640))
}

// up brings a machine's wg0 up with a configuration.
func (w *tunnel) up(h *lab.Host, machine, config string) {
	w.t.Helper()
	lab.Must(w.t, os.WriteFile(w.file(machine), []byte(config), 0o600))
	w.quick(h, machine, "up")
}

// quick runs wg-quick on a machine with its own /run.
func (w *tunnel) quick(h *lab.Host, machine, verb string) {
	w.t.Helper()
	if out, code := lab.Run(w.t, h, w.command(machine, "wg-quick", verb, w.file(machine))); code != 0 {
		w.t.Fatalf("wg-quick %s on the %s: exit %d\n%s\nserver:\n%s", verb, machine, code, out, w.gateway.Log())
	}
}

func (w *tunnel) file(machine string) string { return filepath.Join(w.home, machine, "wg0.conf") }

func (w *tunnel) command(machine, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=" + w.gateway.Bin + ":" + os.Getenv("PATH"), "HOME=" + w.home, "XDG_CONFIG_HOME=" + w.home}
	return lab.See(cmd, map[string]string{"/run": filepath.Join(w.home, machine, "run")})
}

// client runs spa-client on the laptop, with the laptop's key.
func (w *tunnel) client(args ...string) {
	w.t.Helper()
	if out, code := lab.Run(w.t, w.gateway.Client, w.command("laptop", filepath.Join(w.gateway.Bin, "spa-client"),
		args...)); code != 0 {
		w.t.Fatalf("spa-client %v: exit %d\n%s\nserver:\n%s", args, code, out, w.gateway.Log())
	}
}

// handshakes reports whether the laptop has received a handshake from the gateway's WireGuard.
func (w *tunnel) handshakes() bool {
	w.t.Helper()
	out, code := lab.Run(w.t, w.gateway.Client, w.command("laptop", "wg", "show", "wg0", "latest-handshakes"))
	if code != 0 {
		w.t.Fatalf("wg show: exit %d\n%s", code, out)
	}
	return !strings.HasSuffix(strings.TrimSpace(out), "\t0")
}

// reaches reports whether a connection from the laptop is accepted.
func (w *tunnel) reaches(address string, within time.Duration) bool {
	conn, err := lab.Dial(w.gateway.Client, "", address, within)
	if err != nil {
		return false
	}
	defer conn.Close()
	return lab.Echoes(conn, "hello", within) == nil
}
