package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// fails runs spa-server in the gateway, checks the exit code, and returns the output.
func (g *gateway) fails(want int, args ...string) string {
	g.t.Helper()
	out, code := g.run(g.host, "spa-server", args...)
	if code != want {
		g.t.Errorf("spa-server %s: exit %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	return out
}

func wantSaid(t testing.TB, out string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(out, word) {
			t.Errorf("got %q, want it to say %q", out, word)
		}
	}
}

// TestSecondServer: one server for each directory and network namespace.
func TestSecondServer(t *testing.T) {
	g := newGateway(t)
	g.start()
	wantSaid(t, g.fails(1, "run", "--config", g.dir), "state directory", "spa-server is already running")
	other := filepath.Join(t.TempDir(), "other")
	g.must("spa-server", "init", "--config", other, "--address", "192.0.2.1", "--service", "ssh=tcp/2222")
	wantSaid(t, g.fails(1, "run", "--config", other), "network namespace", "spa-server is already running")
	g.mustOpen()
}

// TestMissingCapability: a missing capability is reported before anything is changed.
func TestMissingCapability(t *testing.T) {
	g := newGateway(t)
	lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	for _, capability := range []string{"net_admin", "net_raw"} {
		cmd := exec.Command("setpriv", "--bounding-set=-"+capability, "--", filepath.Join(bin, "spa-server"),
			"run", "--config", g.dir)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		lab.Must(t, g.host.Start(cmd))
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("without %s: exit %d, want 1", capability, code)
		}
		wantSaid(t, out.String(), "CAP_"+strings.ToUpper(capability))
	}
}

// TestModes: secrets that others can read are refused, with the command that fixes it.
func TestModes(t *testing.T) {
	g := newGateway(t)
	gate := filepath.Join(g.dir, "gate.key")
	os.Chmod(gate, 0o644)
	wantSaid(t, g.fails(1, "run", "--config", g.dir), gate, "chmod")
	wantSaid(t, g.fails(1, "check", "--config", g.dir), "gate.key", "chmod")
	os.Chmod(gate, 0o640)

	alice := filepath.Join(g.dir, "clients", "alice.toml")
	os.Chmod(alice, 0o604)
	wantSaid(t, g.fails(1, "check", "--config", g.dir), "alice.toml", "chmod")
	g.start()
	wantSaid(t, g.server.log(), "alice.toml", "chmod")
	if out, code := g.open("--timeout", "500ms"); code != 4 {
		t.Errorf("a client whose file others can read: exit %d, want 4\n%s", code, out)
	}
}

// TestBadFiles: each mistake is reported with file, line and a hint, and nothing starts.
func TestBadFiles(t *testing.T) {
	tests := []struct{ name, file, old, new, want string }{
		{"unknown key", "server.toml", "receipts =", "reciepts =", "receipts"},
		{"bad value", "server.toml", `window = "30s"`, `window = "30"`, "window"},
		{"bad server id", "server.toml", `server_id = "`, `server_id = "00`, "server_id"},
		{"bad port", "server.toml", `"tcp/22"`, `"tcp/99999"`, "tcp/99999"},
		{"short gate key", "gate.key", `key = "`, `key = "AAAA`, "key"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := newGateway(t)
			path := filepath.Join(g.dir, test.file)
			line := replaceInFile(t, path, test.old, test.new)
			for _, command := range []string{"run", "check"} {
				wantSaid(t, g.fails(1, command, "--config", g.dir), fmt.Sprintf("%s:%d", test.file, line), test.want)
			}
		})
	}
}

// replaceInFile edits a file and returns the number of the line that changed.
func replaceInFile(t testing.TB, path, old, new string) int {
	t.Helper()
	data := lab.Value(os.ReadFile(path))(t)
	before, after, ok := strings.Cut(string(data), old)
	if !ok {
		t.Fatalf("%s has no %q:\n%s", path, old, data)
	}
	lab.Must(t, os.WriteFile(path, []byte(before+new+after), 0o600))
	return strings.Count(before, "\n") + 1
}

// TestBadClientFile: a mistake in one client's file shuts out that client, even beside a copy of its file, and only
// that one.
func TestBadClientFile(t *testing.T) {
	g := newGateway(t)
	g.enrol("bob", "ssh")
	alice := lab.Value(os.ReadFile(filepath.Join(g.dir, "clients", "alice.toml")))(t)
	twin := filepath.Join(g.dir, "clients", "alice-twin.toml")
	lab.Must(t, os.WriteFile(twin, alice, 0o600))
	g.handOver(twin)
	g.edit("bob", "alow = [\"ssh\"]\n")
	out := g.fails(1, "check", "--config", g.dir)
	wantSaid(t, out, "bob.toml", "allow", "alice-twin.toml", "alice.toml")
	g.start()
	g.mustOpen()
	// The same while it runs.
	if out := g.status().LeftOut; len(out) != 2 || out[0].Client != "alice-twin" || out[1].Client != "bob" {
		t.Errorf("status has %v, want bob and the twin to be left out", out)
	}
	g.edit("alice", "nonsense\n")
	lab.Eventually(t, "alice to be shut out", func() bool { return g.status().Grants == 0 })
	if out, code := g.open("--timeout", "500ms"); code != 4 {
		t.Errorf("a client whose file has a mistake: exit %d, want 4\n%s", code, out)
	}
	wantSaid(t, g.server.log(), "client file ignored: this client cannot knock until it is fixed",
		"client=alice", "alice.toml")
	wantSaid(t, g.fails(1, "check", "--config", g.dir), "alice.toml", "this client cannot knock", "# fix the file")
	if out, code := g.run(g.host, "spa-keygen", "list", "--config", g.dir); code != 1 ||
		!strings.Contains(out, "these clients cannot knock until their files are fixed") {
		t.Errorf("list: exit %d\n%s", code, out)
	}
}

// TestForeignTable: a table with our name that is not ours is left alone.
func TestForeignTable(t *testing.T) {
	g := newGateway(t)
	lab.Must(t, g.host.Do(foreignTable))
	wantSaid(t, g.fails(1, "run", "--config", g.dir), "inet spa")
	wantSaid(t, g.fails(1, "guard", "--config", g.dir), "inet spa")
}

// TestFullDisk: a full disk locks no client out and opens nothing.
func TestFullDisk(t *testing.T) {
	lab.NeedRoot(t)
	state := t.TempDir()
	lab.Must(t, syscall.Mount("tmpfs", state, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() { syscall.Unmount(state, syscall.MNT_DETACH) })
	g := newGateway(t)
	g.must("spa-server", "init", "--config", filepath.Join(state, "etc"), "--address", "192.0.2.1", "--service",
		"ssh=tcp/22", "--service", "web=tcp/80")
	g.dir, g.home = filepath.Join(state, "etc"), filepath.Join(t.TempDir(), "home")
	g.enrol("alice", "ssh")
	g.serve(":22")
	g.start()
	lab.Must(t, lab.FillDisk(filepath.Join(state, "ballast")))
	alice := sender(g.profile())
	packet := g.seal(request(), alice)
	g.wantReceipt("192.0.2.2", packet, alice, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "with a full disk")
	if again := g.exchange("192.0.2.2", packet, alice, silence); again != nil {
		t.Errorf("with a full disk a copy is answered: %v", again.Status)
	}
	for range 200 { // the page already allocated for the log takes some lines
		g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
		if strings.Contains(g.server.log(), "audit lines lost") {
			break
		}
	}
	lab.Eventually(t, "the lost audit lines to be said",
		func() bool { return strings.Contains(g.server.log(), "audit lines lost") })
	if a := g.status().Audit; a.Lost == 0 || a.LostAt.IsZero() || !strings.Contains(a.LostWhy, "no space left") {
		t.Errorf("status says of the log %+v, want what was lost", a)
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "lines LOST", "no space left")
	wantSaid(t, g.fails(1, "check", "--config", g.dir), "lines lost since the server was started")
	g.server.stop(syscall.SIGKILL)
	g.start()
	if again := g.exchange("192.0.2.2", packet, alice, silence); again != nil {
		t.Errorf("with a full disk and after kill -9 a copy is answered: %v", again.Status)
	}
	g.mustOpen("--for", "10m", "--source", "192.0.2.2")
	wantSaid(t, g.must("spa-keygen", "revoke", "alice", "--config", g.dir), "alice is revoked")
	lab.Eventually(t, "what alice has open to be shut", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:22") })
	if out, code := g.open("--timeout", "500ms"); code != 4 {
		t.Errorf("alice, revoked with a full disk: exit %d, want 4\n%s", code, out)
	}
}

// TestInitOverNothing: init overwrites nothing and says so.
func TestInitOverNothing(t *testing.T) {
	g := newGateway(t)
	before := lab.Value(os.ReadFile(filepath.Join(g.dir, "gate.key")))(t)
	wantSaid(t, g.fails(1, "init", "--config", g.dir, "--address", "192.0.2.1"), "already", "nothing was changed")
	after, err := os.ReadFile(filepath.Join(g.dir, "gate.key"))
	if err != nil || string(after) != string(before) {
		t.Errorf("gate.key is not as it was (%v)", err)
	}
	g.fails(2, "init", "--config", filepath.Join(t.TempDir(), "x"))
	g.fails(2, "init", "--config", filepath.Join(t.TempDir(), "x"), "--address", "192.0.2.1", "--service", "ssh=22")
	g.fails(2, "run", "--config", g.dir, "--confirm", "-1s")
	g.fails(2, "nonsense")
}

// TestDryRun: a dry run decides and records, and changes nothing.
func TestDryRun(t *testing.T) {
	g := newGateway(t)
	replaceInFile(t, filepath.Join(g.dir, "server.toml"), `backend = "auto"`, `backend = "dry-run"`)
	g.serve(":22")
	g.start()
	g.wantOpen("192.0.2.3", "192.0.2.1:22", "dry run guards nothing")
	g.mustOpen()
	g.wantOutcomes("alice", "granted")
	wantSaid(t, g.fails(0, "check", "--config", g.dir), "dry-run")
}

// TestReceiptsOff: the server sends nothing, and the client finds out by trying the port.
func TestReceiptsOff(t *testing.T) {
	g := newGateway(t)
	replaceInFile(t, filepath.Join(g.dir, "server.toml"), "receipts = true", "receipts = false")
	g.enrolAgain()
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	if receipt := g.exchange("192.0.2.2", g.seal(request(), alice), alice, silence); receipt != nil {
		t.Errorf("answered with receipts off: %v", receipt.Status)
	}
	g.mustOpen()
}

// enrolAgain gives alice a token of the current configuration.
func (g *gateway) enrolAgain() {
	g.t.Helper()
	os.Remove(filepath.Join(g.dir, "clients", "alice.toml"))
	os.RemoveAll(g.home)
	g.enrol("alice", "ssh")
}

// TestReadiness: the server notifies systemd when it is ready, and when it stops (sd_notify(3)).
func TestReadiness(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn := lab.Value(net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path}))(t)
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	g := newGateway(t)
	g.start()
	want := func(state string) {
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(lab.Patience))
		var buf [256]byte
		n, err := conn.Read(buf[:])
		if err != nil || string(buf[:n]) != state {
			t.Errorf("systemd was notified %q (%v), want %q", buf[:n], err, state)
		}
	}
	want("READY=1")
	g.server.stop(syscall.SIGTERM)
	want("STOPPING=1")
}

// TestSharedKnockPort: a receipt from a guarded port that the host serves too lets no one in.
func TestSharedKnockPort(t *testing.T) {
	g := newGateway(t)
	g.rewrite("server.toml", `knock_ports = \[62201\]`, `knock_ports = [{ port = 443, shared = true }]`)
	g.rewrite("server.toml", `ports = \["tcp/80"\]`, `ports = ["udp/443"]`)
	heard := make(chan string, 10)
	var web *net.UDPConn
	lab.Must(t, g.host.Do(func() (err error) {
		web, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 443})
		return err
	}))
	defer web.Close()
	go func() {
		var buf [2048]byte
		for {
			n, err := web.Read(buf[:])
			if err != nil {
				return
			}
			heard <- string(buf[:n])
		}
	}()
	g.start()
	alice := sender(g.profile())
	r := request()
	r.Services = []service.Service{{Name: "web"}}
	packet := g.seal(r, alice)
	conn := g.socket("192.0.2.2")
	port := netip.MustParseAddrPort("192.0.2.1:443")
	if _, err := conn.WriteToUDPAddrPort(packet, port); err != nil {
		t.Fatal(err)
	}
	var buf [2048]byte
	conn.SetReadDeadline(time.Now().Add(lab.Patience))
	n, err := conn.Read(buf[:])
	if err != nil {
		t.Fatalf("no receipt: %v\n%s", err, g.server.log())
	}
	if receipt, err := spa.OpenReceipt(buf[:n], packet, alice); err != nil || receipt.Status != spa.ReasonNotAllowed {
		t.Fatalf("got %v and %v", receipt.Status, err)
	}
	for range 3 {
		_, err := conn.WriteToUDPAddrPort([]byte("let me in"), port)
		lab.Must(t, err)
	}
	select {
	case text := <-heard:
		t.Errorf("after a refusal %d bytes got through to the guarded port", len(text))
	case <-time.After(silence):
	}
}
