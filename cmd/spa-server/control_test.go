package main

import (
	"encoding/json"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// objects parses a command's output with --json.
func objects[T any](t testing.TB, out string) []T {
	t.Helper()
	var list []T
	for line := range strings.Lines(out) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, v)
	}
	return list
}

func (g *gateway) status() control.Status {
	g.t.Helper()
	return objects[control.Status](g.t, g.must("spa-server", "status", "--json", "--config", g.dir))[0]
}

func (g *gateway) grants() []control.Grant {
	g.t.Helper()
	return objects[control.Grant](g.t, g.must("spa-server", "grants", "--json", "--config", g.dir))
}

// seen returns the status entry of a client.
func (g *gateway) seen(client string) control.Seen {
	g.t.Helper()
	for _, c := range g.status().Seen {
		if c.Client == client {
			return c
		}
	}
	return control.Seen{}
}

// TestStatus: the status agrees with what happened.
func TestStatus(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "ssh"))
	before := time.Now()
	g.start()
	g.wantNew(g.status(), before)

	alice := sender(g.profile())
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	st := g.status()
	last := st.LastGrant
	if st.Grants != 1 || last == nil || last.Client != "alice" || last.Service != "ssh" || last.Source != lab2 ||
		last.Since.Before(before) {
		t.Errorf("after a grant: %d grants, the last %+v", st.Grants, last)
	}
	if st.Capture.Received == 0 || st.Capture.Passed == 0 || st.Journal.Live != 1 {
		t.Errorf("packets %+v, journal %+v", st.Capture, st.Journal)
	}
	g.wantClocks(alice, bob, last.Since)

	g.server.stop(syscall.SIGTERM)
	lab.Must(t, os.Remove(filepath.Join(g.dir, "journal")))
	g.start()
	if floor := g.status().Floor; floor == nil || !strings.Contains(floor.Reason, "no journal") {
		t.Errorf("after the journal was lost: floor %+v", floor)
	}
}

// wantNew fails unless the status is that of a server started after before that has received nothing.
func (g *gateway) wantNew(st control.Status, before time.Time) {
	g.t.Helper()
	if st.Since.Before(before) || st.Since.After(time.Now()) || st.PID != g.server.cmd.Process.Pid || st.Name != "gw" ||
		st.Protocol != 1 {
		g.t.Errorf("since %v, process %d, %q, protocol %d", st.Since, st.PID, st.Name, st.Protocol)
	}
	if !st.All || !slices.Equal(st.Interfaces, []string{"vs"}) || !slices.Equal(st.KnockPorts, []string{"udp/62201"}) ||
		!slices.Equal(st.Guards, []string{"ssh=tcp/22", "web=tcp/80"}) {
		g.t.Errorf("interfaces %v (all: %v), knocks %v, guards %v", st.Interfaces, st.All, st.KnockPorts, st.Guards)
	}
	if st.Firewall.Backend != "nftables" || st.Firewall.Sentence == "" || st.Gate.Previous || st.Clients != 2 ||
		st.Grants != 0 || st.LastGrant != nil || st.Floor != nil {
		g.t.Errorf("got %+v", st)
	}
	if st.Rights.Capabilities != "CAP_NET_ADMIN" || !st.Rights.NoNewPrivs || st.Rights.User == "" {
		g.t.Errorf("privileges: %+v", st.Rights)
	}
}

// wantClocks fails unless the status shows by how much clients' clocks differ: alice's by her last knock, after since,
// and bob's by a stale one, until his clock is right.
func (g *gateway) wantClocks(alice, bob spa.Sender, since time.Time) {
	g.t.Helper()
	ahead := request()
	ahead.Time = time.Now().Add(9 * time.Second)
	g.wantReceipt("192.0.2.3", g.seal(ahead, alice), alice, spa.Granted)
	alices := g.seen("alice")
	if !stamped(alices.Ahead, ahead, alices.Last) || alices.Last.Before(since) ||
		alices.From.String() != "192.0.2.3" || alices.Stale != nil {
		g.t.Errorf("alice, 9 s ahead: %+v", alices)
	}
	behind := request()
	behind.Time = time.Now().Add(-43 * time.Second)
	g.send("192.0.2.4", g.seal(behind, bob))
	lab.Eventually(g.t, "bob's clock to be known", func() bool { return g.seen("bob").Stale != nil })
	stale := g.seen("bob").Stale
	if stale.Packets != 1 || !stamped(stale.Ahead, behind, stale.Last) || stale.Last.Before(alices.Last) ||
		stale.From.String() != "192.0.2.4" {
		g.t.Errorf("bob, 43 s behind: %+v", stale)
	}
	wantSaid(g.t, g.must("spa-server", "status", "--config", g.dir), "bob: "+offset(stale.Ahead),
		"alice: clock "+offset(alices.Ahead), "udp/62201 on all interfaces, now vs", "the last at")
	right := request()
	g.wantReceipt("192.0.2.4", g.seal(right, bob), bob, spa.Granted)
	if seen := g.seen("bob"); seen.Stale != nil || !stamped(seen.Ahead, right, seen.Last) {
		g.t.Errorf("bob, with the right clock: %+v", seen)
	}
}

// stamped reports whether a clock is reported ahead by as much as a request was stamped later than it arrived.
func stamped(ahead float64, r spa.Request, came time.Time) bool {
	return math.Abs(ahead-r.Time.Sub(came).Seconds()) < 1e-6
}

// TestStatusOfTrial: the status shows that a guard is on trial, until someone got in.
func TestStatusOfTrial(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	before := time.Now()
	g.start("--confirm", "10m")
	if f := g.status().Firewall; f.Missing || f.Trial.Before(before.Add(10*time.Minute)) ||
		f.Trial.After(time.Now().Add(10*time.Minute)) {
		t.Errorf("on trial: %+v", f)
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "on trial: removed at")
	g.mustOpen("--source", "192.0.2.2")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted")
	lab.Eventually(t, "the trial to be over", func() bool { return g.status().Firewall.Trial.IsZero() })
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "in place")
}

// TestCounters: each refused knock moves one counter.
func TestCounters(t *testing.T) {
	g := newGateway(t)
	carol := sender(g.enrol("carol", "ssh"))
	g.must("spa-keygen", "revoke", "carol", "--config", g.dir)
	g.start()
	alice := sender(g.profile())
	first := g.seal(request(), alice)
	g.wantReceipt("192.0.2.2", first, alice, spa.Granted)
	unknown := alice
	unknown.ID++
	stated := func(r *spa.Request) { r.Source = lab2 }
	old := func(r *spa.Request) { r.Time = r.Time.Add(-time.Minute) }
	other := func(r *spa.Request) { r.Services = []service.Service{{Name: "web"}} }
	sealed := func(s spa.Sender, changes ...func(*spa.Request)) func() []byte {
		return func() []byte { // when its turn has come
			r := request()
			for _, change := range changes {
				change(&r)
			}
			return g.seal(r, s)
		}
	}
	for _, test := range []struct {
		name, from string
		packet     func() []byte
		counter    string // the beginning of its name
	}{
		{"copy", "192.0.2.2", func() []byte { return first }, "unspent: nonce already spent"},
		{"gate", "192.0.2.2", func() []byte { return make([]byte, 200) }, "unopened: wrong gate tag"},
		{"client", "192.0.2.2", sealed(unknown), "unopened: unknown client"},
		{"mac", "192.0.2.2", func() []byte { return flip(g.seal(request(), alice), 60) }, "unopened: wrong mac"},
		{"revoked", "192.0.2.2", sealed(carol), "unopened: revoked"},
		{"stale", "192.0.2.2", sealed(alice, old), "unopened: stale packet"},
		{"stated", "192.0.2.3", sealed(alice, stated), "elsewhere: the stated source"},
		{"denied", "192.0.2.2", sealed(alice, other), "denied"},
		{"granted", "192.0.2.2", sealed(alice), "granted"},
	} {
		before := g.status().Decided
		g.send(test.from, test.packet())
		var got []string
		lab.Eventually(t, "a counter to move for "+test.name, func() bool {
			got = moved(before, g.status().Decided)
			return len(got) > 0
		})
		if len(got) != 1 || !strings.HasPrefix(got[0], test.counter) {
			t.Errorf("%s: moved %q, want one that begins with %q", test.name, got, test.counter)
		}
	}
}

// moved returns the names of the counters that differ.
func moved(before, after map[string]uint64) []string {
	var names []string
	for name, n := range after {
		if before[name] != n {
			names = append(names, name)
		}
	}
	return names
}

// TestNobodyToAsk: a command without a running server reports that, with a hint.
func TestNobodyToAsk(t *testing.T) {
	g := newGateway(t)
	for _, command := range [][]string{{"status"}, {"grants", "--json"}, {"watch"}, {"revoke", "alice"}, {"reload"}} {
		wantSaid(t, g.fails(1, append(command, "--config", g.dir)...), "error: ", "spa-server is not running",
			"hint: ", "systemctl start")
	}
	wantSaid(t, g.fails(2, "revoke", "Alice!", "--config", g.dir), "neither a client's name nor an address")
	g.start()
	g.server.stop(syscall.SIGTERM)
	wantSaid(t, g.fails(1, "status", "--config", g.dir), "spa-server is not running")
}

// TestStatusWithBrokenConfig: the status works while server.toml is being fixed.
func TestStatusWithBrokenConfig(t *testing.T) {
	g := newGateway(t)
	state := filepath.Join(t.TempDir(), "state")
	lab.Must(t, os.Mkdir(state, 0o700))
	g.rewrite("server.toml", `state = "\."`, `state = "`+state+`"`)
	g.start()
	for _, mistake := range []string{"nonsense\n", "x = = 1\n"} {
		path := filepath.Join(g.dir, "server.toml")
		good := lab.Value(os.ReadFile(path))(t)
		lab.Must(t, os.WriteFile(path, append([]byte(mistake), good...), 0o600))
		if st := g.status(); st.Name != "gw" {
			t.Errorf("got %+v", st)
		}
		lab.Must(t, os.WriteFile(path, good, 0o600))
	}
	// If the state directory does not exist yet, the running server is found in the old place.
	g.rewrite("server.toml", `(?m)^state = .*$`, `state = "/nowhere"`)
	g.fails(0, "status", "--config", g.dir)
	g.server.stop(syscall.SIGTERM)
	wantSaid(t, g.fails(1, "status", "--config", g.dir), "/nowhere/control.sock", "spa-server is not running")
}

// TestSocket: it belongs to root and the server alone, even if its mode was changed; it goes with the server; one left
// by kill -9 is replaced; a file that is not a socket is left alone.
func TestSocket(t *testing.T) {
	g := newGateway(t)
	g.give(g.dir)
	path := filepath.Join(g.dir, control.SocketName)
	g.start()
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("got %v (%v), want a socket that only its owner may use", info.Mode(), err)
	}
	g.server.stop(syscall.SIGTERM)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after a clean end the socket is still there (%v)", err)
	}
	g.start()
	g.server.stop(syscall.SIGKILL)
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("kill -9 left no socket: %v", err)
	}
	wantSaid(t, g.fails(1, "status", "--config", g.dir), "spa-server is not running")
	g.start()
	g.status()
	g.server.stop(syscall.SIGTERM)

	target := filepath.Join(t.TempDir(), "precious")
	for name, plant := range map[string]func() error{
		"file":    func() error { return os.WriteFile(path, []byte("mine"), 0o600) },
		"symlink": func() error { return os.Symlink(target, path) },
	} {
		lab.Must(t, plant())
		wantSaid(t, g.fails(1, "run", "--config", g.dir), path, "something else has this name")
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: it was taken away: %v", name, err)
		}
		os.Remove(path)
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("what the link leads to was made (%v)", err)
	}
}

// TestLongStatePath: a path longer than a socket address works.
func TestLongStatePath(t *testing.T) {
	g := newGateway(t)
	state := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	lab.Must(t, os.MkdirAll(state, 0o700))
	g.give(state)
	g.rewrite("server.toml", `state = "\."`, `state = "`+state+`"`)
	g.start()
	if st := g.status(); st.PID != g.server.cmd.Process.Pid {
		t.Errorf("got process %d", st.PID)
	}
	g.server.stop(syscall.SIGTERM)
	if _, err := os.Lstat(filepath.Join(state, control.SocketName)); !os.IsNotExist(err) {
		t.Errorf("after a clean end the socket is still there (%v)", err)
	}
}

// TestOtherUser: another user is refused by the socket's mode and, if that was opened, by its uid.
func TestOtherUser(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	g := newGateway(t)
	g.start()
	for _, path := range []string{bin, filepath.Dir(filepath.Dir(g.dir)), filepath.Dir(g.dir), g.dir} {
		lab.Must(t, os.Chmod(path, 0o755))
	}
	lab.Must(t, os.Chmod(filepath.Join(g.dir, "server.toml"), 0o644))
	ask := func(args ...string) (string, int) {
		args = append([]string{"--reuid=64124", "--regid=64124", "--clear-groups", "--", filepath.Join(bin, "spa-server")},
			args...)
		cmd := exec.Command("setpriv", append(args, "--config", g.dir)...)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	socket := filepath.Join(g.dir, control.SocketName)
	for _, mode := range []os.FileMode{0o600, 0o666} {
		lab.Must(t, os.Chmod(socket, mode))
		for _, command := range [][]string{{"status"}, {"revoke", "alice"}, {"reload"}} {
			out, code := ask(command...)
			if code != 1 || !strings.Contains(out, "only root") {
				t.Errorf("%v with mode %v: exit %d\n%s", command, mode, code, out)
			}
		}
	}
	g.status()
}

// TestSilentClients: a connection that sends nothing, or too much, delays no one and is closed.
func TestSilentClients(t *testing.T) {
	g := newGateway(t)
	g.start()
	path := filepath.Join(g.dir, control.SocketName)
	var silent []net.Conn
	for range 20 {
		conn := lab.Value(net.Dial("unix", path))(t)
		defer conn.Close()
		silent = append(silent, conn)
	}
	g.status()
	g.mustOpen()
	for _, bad := range []string{strings.Repeat("x", 8<<10) + "\n", "{}\n", `{"command":"status","more":1}` + "\n",
		`{"command":"status"}{}` + "\n", "\n"} {
		conn := lab.Value(net.Dial("unix", path))(t)
		conn.Write([]byte(bad))
		conn.SetReadDeadline(time.Now().Add(lab.Patience))
		buf := make([]byte, 4<<10)
		n, _ := conn.Read(buf)
		if !strings.Contains(string(buf[:n]), `"error"`) {
			t.Errorf("%.20q: answered %q, want an error", bad, buf[:n])
		}
		conn.Close()
	}
	silent[0].SetReadDeadline(time.Now().Add(lab.Patience))
	buf := make([]byte, 1)
	for {
		if _, err := silent[0].Read(buf); err != nil {
			if os.IsTimeout(err) {
				t.Error("a client that says nothing is not hung up on")
			}
			break
		}
	}
}

// TestPrivilegedSocket: after the privilege drop, root and the system user can connect, and a server that cannot remove
// its socket leaves one that no process answers.
func TestPrivilegedSocket(t *testing.T) {
	g := newSystemGateway(t)
	g.start()
	info := lab.Value(os.Lstat(filepath.Join(g.dir, control.SocketName)))(t)
	if owner := info.Sys().(*syscall.Stat_t); owner.Uid != spaID || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v of %d, want 0600 of %d", info.Mode(), owner.Uid, spaID)
	}
	st := g.status()
	if st.Rights.User != "spa" || st.Rights.UID != spaID || st.Rights.Capabilities != "CAP_NET_ADMIN" ||
		len(st.Rights.Notes) != 0 {
		t.Errorf("privileges: %+v", st.Rights)
	}
	if out, code := g.asSystemUser("status", "--config", g.dir); code != 0 {
		t.Errorf("the system user: exit %d\n%s", code, out)
	}
	if code := g.server.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, want 0\n%s", code, g.server.log())
	}
	wantSaid(t, g.fails(1, "status", "--config", g.dir), "spa-server is not running")
	g.start()
	g.status()
}

// newSystemGateway is newGateway on a machine with a system user.
func newSystemGateway(t *testing.T) *gateway {
	t.Helper()
	lab.NeedRoot(t)
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc"), home: filepath.Join(t.TempDir(), "home")}
	g.client, g.host = lab.Pair(t)
	g.withSystemUser()
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22",
		"--service", "web=tcp/80")
	g.enrol("alice", "ssh")
	return g
}

// asSystemUser runs spa-server as the user spa, who gets access to the directories above.
func (g *gateway) asSystemUser(args ...string) (string, int) {
	g.t.Helper()
	for _, path := range []string{bin, filepath.Dir(filepath.Dir(g.dir)), filepath.Dir(g.dir)} {
		lab.Must(g.t, os.Chmod(path, 0o755))
	}
	cmd := exec.Command(filepath.Join(bin, "spa-server"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: spaID, Gid: spaID}}
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}
