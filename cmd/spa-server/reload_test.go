package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// takeOver reloads and returns what changed.
func (g *gateway) takeOver() control.Reloaded {
	g.t.Helper()
	return objects[control.Reloaded](g.t, g.must("spa-server", "reload", "--json", "--config", g.dir))[0]
}

// wantReloaded fails unless a reload reports that these settings changed.
func (g *gateway) wantReloaded(settings ...string) control.Reloaded {
	g.t.Helper()
	r := g.takeOver()
	if !slices.Equal(r.Settings, settings) {
		g.t.Errorf("reload changed %q, want %q", r.Settings, settings)
	}
	return r
}

// settled is the part of the status that a refused reload must not change.
func settled(st control.Status) control.Status {
	return control.Status{Name: st.Name, Address: st.Address, Guards: st.Guards, Receipts: st.Receipts, Window: st.Window,
		Gate: st.Gate, Clients: st.Clients, Grants: st.Grants, PID: st.PID, Since: st.Since}
}

// TestReloadMistakes: a wrong line in any of the files changes nothing, and the error names file and line.
func TestReloadMistakes(t *testing.T) {
	g := newGateway(t)
	g.enrol("bob", "ssh")
	g.serve(":22")
	g.start()
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	before := settled(g.status())
	contents := make(map[string][]byte)
	files := []string{"server.toml", "gate.key", "clients/alice.toml", "clients/bob.toml"}
	for _, file := range files {
		data := lab.Value(os.ReadFile(filepath.Join(g.dir, file)))(t)
		contents[file] = data
	}
	restore := func() {
		for file, data := range contents {
			lab.Must(t, os.WriteFile(filepath.Join(g.dir, file), data, 0o600))
		}
	}
	for _, file := range files {
		if file == "clients/alice.toml" {
			continue // the server shuts her out after a second, without a reload
		}
		t.Run(file, func(t *testing.T) {
			defer restore()
			// Correct changes elsewhere must not be applied either.
			g.rewrite("server.toml", `name = "gw"`, `name = "other"`)
			g.rewrite("server.toml", `window = "30s"`, `window = "60s"`)
			appendFile(t, filepath.Join(g.dir, file), "nonsense = 1\n")
			line := strings.Count(string(contents[file]), "\n") + 1
			out := g.fails(1, "reload", "--config", g.dir)
			wantSaid(t, out, fmt.Sprintf("%s:%d: ", filepath.Join(g.dir, file), line), "nonsense", "nothing was changed")
			after := settled(g.status())
			after.Clients = before.Clients // the same for bob
			if !reflect.DeepEqual(after, before) {
				t.Errorf("status was %+v, is %+v", before, after)
			}
			g.wantOpen("192.0.2.2", "192.0.2.1:22", "what was granted")
			g.wantDark("192.0.2.3", "192.0.2.1:22", "a stranger")
			g.mustOpen("--source", "192.0.2.4")
			if out, code := g.run(g.client, "spa-client", "close", "ssh", "--host", "gw", "--source", "192.0.2.4",
				"--config", g.home); code != 0 {
				t.Errorf("close: exit %d\n%s", code, out)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		defer restore()
		for _, file := range files {
			appendFile(t, filepath.Join(g.dir, file), "nonsense = 1\n")
		}
		wantSaid(t, g.fails(1, "reload", "--config", g.dir), files...)
	})
	t.Run("two clients with one id", func(t *testing.T) {
		defer restore()
		twin := filepath.Join(g.dir, "clients", "twin.toml")
		defer os.Remove(twin)
		lab.Must(t, os.WriteFile(twin, contents["clients/alice.toml"], 0o600))
		g.handOver(twin)
		wantSaid(t, g.fails(1, "reload", "--config", g.dir), "twin.toml", "alice.toml", "one of them is a copy")
	})
	lab.Eventually(t, "both clients to be back", func() bool {
		st := g.status()
		return st.Clients == before.Clients && len(st.LeftOut) == 0
	})
	if r := g.takeOver(); len(r.Settings)+len(r.Added)+len(r.Changed)+len(r.Removed)+len(r.Ended) != 0 {
		t.Errorf("once all is mended a reload changes %+v", r)
	}
	wantSaid(t, g.fails(0, "reload", "--config", g.dir), "nothing has changed")
}

// TestReloadRestart: the error names everything that needs a restart, and nothing changes at all.
func TestReloadRestart(t *testing.T) {
	g := newGateway(t)
	g.start()
	before := settled(g.status())
	g.rewrite("server.toml", `name = "gw"`, `name = "other"`)
	g.rewrite("server.toml", `knock_ports = \[62201\]`, `knock_ports = [62202]`)
	g.rewrite("server.toml", `state = "\."`, `state = "`+t.TempDir()+`"`)
	g.rewrite("server.toml", `interfaces = \[\]`, `interfaces = ["vs"]`)
	g.rewrite("server.toml", `backend = "auto"`, `backend = "dry-run"`)
	g.rewrite("server.toml", `file = ".*"`, `file = "other.jsonl"`)
	g.rewrite("server.toml", `# mark = 0x20000000`, `mark = 0x10000000`)
	out := g.fails(1, "reload", "--config", g.dir)
	wantSaid(t, out, "a restart is needed for knock_ports, state, capture.interfaces, firewall.backend, firewall.mark, "+
		"audit.file: nothing was changed", "systemctl stop spa-server && mv ", "systemctl start spa-server")
	if after := settled(g.status()); !reflect.DeepEqual(after, before) {
		t.Errorf("status was %+v, is %+v", before, after)
	}
	g.mustOpen()
}

// TestReloadHalfway: if the guard accepts the files but the journal cannot, the guard reverts: a port that the new
// files no longer guard stays shut.
func TestReloadHalfway(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.serve(":80")
	g.start()
	prlimit := lab.NeedProgram(t, "prlimit", "apt-get install util-linux")
	limit := func(size string) {
		t.Helper()
		uid, gid, err := sandbox.Becomes(setup.SystemUser)
		lab.Must(t, err)
		// Its own user may do that, whatever root may.
		cmd := exec.Command(prlimit, fmt.Sprintf("--pid=%d", g.server.cmd.Process.Pid), "--fsize="+size+":")
		if uid != os.Getuid() {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	g.rewrite("server.toml", `"tcp/80"`, `"tcp/81"`)
	g.rewrite("server.toml", `window = "30s"`, `window = "60s"`)
	limit("0") // no file can be written
	wantSaid(t, g.fails(1, "reload", "--config", g.dir), "nothing was changed", "journal")
	g.wantDark("192.0.2.3", "192.0.2.1:80", "after half a reload")
	limit("unlimited")
	g.takeOver()
	g.wantOpen("192.0.2.3", "192.0.2.1:80", "not guarded any more")
	g.mustOpen()
}

// TestReloadServices: services are added, changed and removed; grants that are still allowed and all sessions continue,
// other grants end, and no guarded port is open to a stranger at any time.
func TestReloadServices(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "ssh,web"))
	for _, addr := range []string{":22", ":80", ":3306"} {
		g.serve(addr)
	}
	g.start()
	g.mustOpen("--source", "192.0.2.2", "--for", "5m")
	session := lab.Value(g.session("192.0.2.2", "192.0.2.1:22", lab.Patience))(t)
	both := request()
	both.For, both.Services = 5*time.Minute, []service.Service{{Name: "ssh"}, {Name: "web"}}
	g.wantReceipt("192.0.2.3", g.seal(both, bob), bob, spa.Granted)
	g.wantOpen("192.0.2.9", "192.0.2.1:3306", "not guarded yet")
	stop := g.besiege("192.0.2.8", "192.0.2.1:22")

	g.rewrite("server.toml", `(?s)\[service.web\].*`,
		"[service.web]\nports = [\"tcp/8080\"]\n[service.db]\nports = [\"tcp/3306\"]\n")
	r := g.wantReloaded("service.db (new)", "service.web")
	if len(r.Ended) != 1 || r.Ended[0].Client != "bob" || r.Ended[0].Service != "web" {
		t.Errorf("ended %+v, want bob's web", r.Ended)
	}
	g.wantDark("192.0.2.9", "192.0.2.1:3306", "guarded now")
	g.wantOpen("192.0.2.9", "192.0.2.1:80", "no longer guarded")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "alice's ssh")
	g.wantOpen("192.0.2.3", "192.0.2.1:22", "bob's ssh")
	if err := lab.Echoes(session, "still here", lab.Patience); err != nil {
		t.Errorf("the session: %v", err)
	}
	if owners := g.grants(); len(owners) != 2 || owners[0].Client != "alice" || owners[1].Client != "bob" {
		t.Errorf("live grants: %+v", owners)
	}

	g.rewrite("server.toml", `max_for = "10m"`, `max_for = "2m"`)
	if r := g.wantReloaded("service.ssh"); len(r.Ended) != 2 {
		t.Errorf("ended %+v, want both, which are longer than anybody may have now", r.Ended)
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after its grant was taken back")
	if err := lab.Echoes(session, "still here", lab.Patience); err != nil {
		t.Errorf("the session: %v", err)
	}
	g.mustOpen("--source", "192.0.2.2", "--for", "2m")

	g.rewrite("server.toml", `(?s)\[service.db\].*`, "")
	g.wantReloaded("service.db (gone)")
	g.wantOpen("192.0.2.9", "192.0.2.1:3306", "no longer guarded")
	stop()
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted")
}

// besiege tries to get in continuously until it is stopped; it fails the test if it ever succeeded.
func (g *gateway) besiege(from, to string) (stop func()) {
	var over atomic.Bool
	g.t.Cleanup(func() { over.Store(true) })
	entered, done := 0, make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() {
			if conn, err := lab.Dial(g.client, from, to, 20*time.Millisecond); err == nil {
				conn.Close()
				entered++
			}
		}
	}()
	return func() {
		over.Store(true)
		<-done
		if entered > 0 {
			g.t.Errorf("%s got to %s %d times", from, to, entered)
		}
	}
}

// TestReloadSettings: each setting that can change at run time takes effect at once.
func TestReloadSettings(t *testing.T) {
	g := newGateway(t)
	g.rewrite("server.toml", `window = "30s"`, `window = "2m"`)
	g.rewrite("server.toml", "grants_per_hour = 1000", "grants_per_hour = 5")
	bob := sender(g.enrol("bob", "ssh"))
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	at := func(d time.Duration) []byte {
		r := request()
		r.Time = time.Now().Add(d)
		return g.seal(r, alice)
	}
	answered := func(packet []byte, within time.Duration) bool {
		return g.exchange("192.0.2.2", packet, alice, within) != nil
	}

	if !answered(at(-40*time.Second), lab.Patience) {
		t.Error("40 s behind: no answer with a window of 2 min")
	}
	g.rewrite("server.toml", `window = "2m"`, `window = "30s"`)
	g.wantReloaded("window")
	if answered(at(-40*time.Second), silence) {
		t.Error("40 s behind: answered with a window of 30 s")
	}
	lab.Eventually(t, "alice to be too far behind", func() bool { return g.seen("alice").Stale != nil })
	if seen := g.seen("alice"); seen.Ahead > -39 {
		t.Errorf("what was known of alice's clock: %+v", seen)
	}
	g.rewrite("server.toml", `receipts = true`, `receipts = false`)
	g.wantReloaded("receipts")
	silent := g.send("192.0.2.5", at(0))
	g.wantOpen("192.0.2.5", "192.0.2.1:22", "granted without a receipt")
	silent.SetReadDeadline(time.Now().Add(silence))
	if n, err := silent.Read(make([]byte, 2048)); err == nil {
		t.Errorf("answered with %d bytes with receipts off", n)
	}
	g.rewrite("server.toml", `receipts = false`, `receipts = true`)
	g.wantReloaded("receipts")

	// Two of five are used up.
	g.rewrite("server.toml", "grants_per_hour = 5", "grants_per_hour = 3")
	g.wantReloaded("limits.grants_per_hour")
	g.wantReceipt("192.0.2.2", at(0), alice, spa.Granted)
	g.wantReceipt("192.0.2.2", at(0), alice, spa.ReasonTooManyPerHour)
	g.rewrite("server.toml", "grants = 64", "grants = 1")
	g.wantReloaded("limits.grants")
	g.wantReceipt("192.0.2.3", g.seal(request(), bob), bob, spa.Granted)
	g.wantReceipt("192.0.2.4", g.seal(request(), bob), bob, spa.ReasonTooManyGrants)

	g.reloadsFirewall()
}

// reloadsFirewall changes settings of the guard, and the address, and expects each to take effect.
func (g *gateway) reloadsFirewall() {
	g.t.Helper()
	g.rewrite("server.toml", `trusted_interfaces = \[\]`, `trusted_interfaces = ["vs"]`)
	g.wantReloaded("firewall.trusted_interfaces")
	g.wantOpen("192.0.2.9", "192.0.2.1:22", "by a trusted interface")
	g.rewrite("server.toml", `trusted_interfaces = \["vs"\]`, `trusted_interfaces = []`)
	g.rewrite("server.toml", `closed = "drop"`, `closed = "reject"`)
	g.rewrite("server.toml", `address = ".*"`, `address = "192.0.2.77"`)
	g.wantReloaded("address", "firewall.closed", "firewall.trusted_interfaces")
	if _, err := lab.Dial(g.client, "192.0.2.9", "192.0.2.1:22", lab.Patience); err == nil ||
		!strings.Contains(err.Error(), "refused") {
		g.t.Errorf(`a stranger with closed = "reject": %v, want refused`, err)
	}
	if st := g.status(); st.Address != "192.0.2.77" || st.Window != "30s" {
		g.t.Errorf("status says address %s, window %s", st.Address, st.Window)
	}
}

// TestReloadReceiptsOn: a server that started without receipts can send them.
func TestReloadReceiptsOn(t *testing.T) {
	g := newGateway(t)
	g.rewrite("server.toml", `receipts = true`, `receipts = false`)
	g.start()
	alice := sender(g.profile())
	if receipt := g.exchange("192.0.2.2", g.seal(request(), alice), alice, silence); receipt != nil {
		t.Errorf("answered with receipts off: %v", receipt.Status)
	}
	g.rewrite("server.toml", `receipts = false`, `receipts = true`)
	g.wantReloaded("receipts")
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
}

// TestReloadLiveNonces: the limit includes what is already remembered.
func TestReloadLiveNonces(t *testing.T) {
	g := newGateway(t)
	g.keepFresh() // and remembered
	g.start()
	alice := sender(g.profile())
	for range 3 {
		g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	}
	g.rewrite("server.toml", "live_nonces = 256", "live_nonces = 4")
	g.wantReloaded("limits.live_nonces")
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	if receipt := g.exchange("192.0.2.2", g.seal(request(), alice), alice, silence); receipt != nil {
		t.Errorf("a fifth packet was spent with live_nonces = 4: %v", receipt.Status)
	}
}

// TestReloadClientsAndGate: clients and the gate key are reloaded completely after the privilege drop, in a directory
// that the system user cannot reach by its path.
func TestReloadClientsAndGate(t *testing.T) {
	g := newSystemGateway(t)
	g.serve(":22")
	g.start()
	g.mustOpen("--source", "192.0.2.2")
	alice := sender(g.profile())
	g.must("spa-keygen", "rotate-gate", "--config", g.dir)
	g.takeOver()
	st := g.status()
	if !st.Gate.Previous || st.Gate.Until.Before(time.Now()) || len(st.Seen) != 1 {
		t.Errorf("after rotate-gate: %+v, seen %+v", st.Gate, st.Seen)
	}
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	if !g.seen("alice").OldGate {
		t.Error("alice uses the old gate key, and nothing reports it")
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "clients that used it last: 1",
		"alice: ", "uses the old gate key")
	gates := lab.Value(keys.ReadGate(filepath.Join(g.dir, "gate.key")))(t)
	alice.Gate = gates.Current
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	if g.seen("alice").OldGate {
		t.Error("alice uses the new gate key, and the old one is reported")
	}

	g.rewrite("server.toml", `max_for = "10m"`, `max_for = "9m"`)
	g.wantReloaded("service.ssh", "service.web")
	appendFile(t, filepath.Join(g.dir, "server.toml"), "nonsense = 1\n")
	wantSaid(t, g.fails(1, "reload", "--config", g.dir), "server.toml:", "nonsense")
}

// TestOldKeysAreNamed: status and watch name clients that still use the key before a rotation.
func TestOldKeysAreNamed(t *testing.T) {
	g := newGateway(t)
	g.start()
	old := sender(g.profile())
	token := g.must("spa-keygen", "rotate", "alice", "--config", g.dir)
	profile := lab.Value(keys.ParseToken(token))(t)
	lab.Eventually(t, "the new key to be known", func() bool { return strings.Contains(g.server.log(), "client changed") })
	w := g.watch()
	g.wantReceipt("192.0.2.2", g.seal(request(), old), old, spa.Granted)
	if d := w.wantShown(t, "granted", "alice"); !d.OldKey || !g.seen("alice").OldKey {
		t.Errorf("alice uses her old key: watch says %+v, status %+v", d, g.seen("alice"))
	}
	wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "uses its old key")
	alice := sender(profile)
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	if g.seen("alice").OldKey {
		t.Error("alice uses her new key, and the old one is reported")
	}
}

// TestReloadUnseenClients: a reload applies changes that the server was not notified of, here one written through
// another name of the file, and an earlier packet does not reopen what was taken from a client.
func TestReloadUnseenClients(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "ssh,web"))
	path, alias := filepath.Join(g.dir, "clients", "bob.toml"), filepath.Join(g.dir, "alias")
	lab.Must(t, os.Link(path, alias))
	g.keepFresh()
	g.serve(":22")
	g.start()
	first := request()
	first.For = 10 * time.Minute
	g.wantReceipt("192.0.2.2", g.seal(first, bob), bob, spa.Granted)
	heldBack := g.seal(request(), bob)
	web := request()
	web.Services = []service.Service{{Name: "web"}}
	heldBackWeb := g.seal(web, bob)
	g.rewrite("alias", `allow = .*`, `allow = ["web"]`)
	r := g.takeOver()
	if !slices.Equal(r.Changed, []string{"bob"}) || len(r.Ended) != 1 || r.Ended[0].Service != "ssh" {
		t.Errorf("got %+v, want bob changed and his ssh ended", r)
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "not allowed any more")
	g.wantReceipt("192.0.2.2", g.seal(request(), bob), bob, spa.ReasonNotAllowed)
	for _, allow := range []string{`["ssh"]`, `["ssh", "web"]`} { // web is removed and added, and no client has it open
		g.rewrite("alias", `allow = .*`, "allow = "+allow)
		g.takeOver()
	}
	g.wantReceipt("192.0.2.2", heldBack, bob, spa.ReasonSuperseded)
	g.wantReceipt("192.0.2.2", heldBackWeb, bob, spa.ReasonSuperseded)
	g.wantReceipt("192.0.2.2", g.seal(latest(), bob), bob, spa.Granted)
	lab.Must(t, os.Rename(path, filepath.Join(g.dir, "clients", "carol.toml")))
	lab.Eventually(t, "bob to be gone", func() bool { return g.status().Grants == 0 })
	g.takeOver()
	g.wantReceipt("192.0.2.2", g.seal(latest(), bob), bob, spa.Granted) // what was taken from bob's key stays taken
	if grants := g.grants(); len(grants) != 1 || grants[0].Client != "carol" {
		t.Errorf("bob's file renamed to carol's: %+v", grants)
	}
}

// TestReloadAudit: after the log was moved away, a reload continues in a new one.
func TestReloadAudit(t *testing.T) {
	g := newGateway(t)
	g.give(g.dir)
	g.start()
	g.mustOpen()
	log := filepath.Join(g.dir, "audit.jsonl")
	lab.Must(t, os.Rename(log, log+".1"))
	g.takeOver()
	g.mustOpen()
	g.wantOutcomes("alice", "granted")
	if data, err := os.ReadFile(log + ".1"); err != nil || strings.Count(string(data), `"verdict":"granted"`) != 1 {
		t.Errorf("the old log has %q (%v), want one grant", data, err)
	}
}

// TestHangup: SIGHUP does the same for the log, and reads no file.
func TestHangup(t *testing.T) {
	g := newGateway(t)
	g.give(g.dir)
	g.start()
	g.mustOpen()
	log := filepath.Join(g.dir, "audit.jsonl")
	lab.Must(t, os.Rename(log, log+".1"))
	g.rewrite("server.toml", "(?s).*", "a mistake")
	g.server.cmd.Process.Signal(syscall.SIGHUP)
	lab.Eventually(t, "the new log", func() bool { _, err := os.Stat(log); return err == nil })
	g.mustOpen()
	g.wantOutcomes("alice", "granted")
	if data, err := os.ReadFile(log + ".1"); err != nil || strings.Count(string(data), `"verdict":"granted"`) != 1 {
		t.Errorf("the old log has %q (%v), want one grant", data, err)
	}
}
