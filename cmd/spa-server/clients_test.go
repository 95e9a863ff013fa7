package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// opened starts the server and lets alice open ssh for ten minutes, from 192.0.2.2.
func opened(t *testing.T) *gateway {
	t.Helper()
	g := newGateway(t)
	g.serve(":22")
	g.start()
	g.mustOpen("--for", "10m", "--source", "192.0.2.2")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted")
	return g
}

// TestNarrowedWhileRunning: a client that loses permissions loses the grants that it may no longer hold, and a retry of
// an earlier request changes nothing, even if its clock is ahead.
func TestNarrowedWhileRunning(t *testing.T) {
	changes := map[string]func(g *gateway){
		"allow":   func(g *gateway) { g.rewrite("clients/alice.toml", `allow = .*`, `allow = ["web"]`) },
		"deny":    func(g *gateway) { g.edit("alice", "deny = [\"192.0.2.2/32\"]\n") },
		"from":    func(g *gateway) { g.edit("alice", "from = [\"198.51.100.0/24\"]\n") },
		"expires": func(g *gateway) { g.edit("alice", "expires = 2020-01-01T00:00:00Z\n") },
		"max_for": func(g *gateway) { g.edit("alice", "max_for = \"1m\"\n") },
		"removed": func(g *gateway) { os.Remove(filepath.Join(g.dir, "clients", "alice.toml")) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			g.serve(":22")
			g.start()
			alice := sender(g.profile())
			const ahead = 10 * time.Second
			r := request()
			r.For, r.Time = 10*time.Minute, time.Now().Add(ahead)
			g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
			change(g)
			lab.Eventually(t, "the grant to be ended", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:22") })
			r.Time = time.Now().Add(ahead)
			if receipt := g.exchange("192.0.2.2", g.seal(r, alice), alice, silence); receipt != nil &&
				receipt.Status == spa.Granted {
				t.Error("the answer to a retry says that the port is open")
			}
		})
	}
}

// TestRevokedWhileDown: grants taken from a client while no server ran do not come back with it.
func TestRevokedWhileDown(t *testing.T) {
	for _, start := range []string{"run", "guard"} {
		t.Run(start, func(t *testing.T) {
			g := opened(t)
			g.server.stop(syscall.SIGKILL)
			g.must("spa-keygen", "revoke", "alice", "--config", g.dir)
			if start == "run" {
				g.start()
			} else if out, code := g.run(g.host, "spa-server", "guard", "--config", g.dir); code != 0 {
				t.Fatalf("guard: exit %d\n%s", code, out)
			}
			g.wantDark("192.0.2.2", "192.0.2.1:22", "revoked while the server was down")
			if start == "run" {
				g.flushRuleset()
				lab.Eventually(t, "the guard to be back", func() bool { return !g.reaches("192.0.2.3", "192.0.2.1:22") })
				g.wantDark("192.0.2.2", "192.0.2.1:22", "after a flush")
			}
		})
	}
}

// TestKeyLost: a rotation without an overlap ends the client's grants, even if no server ran; one with an overlap ends
// nothing, even at a start.
func TestKeyLost(t *testing.T) {
	for _, start := range []string{"running", "run", "guard"} {
		t.Run(start, func(t *testing.T) {
			g := opened(t)
			g.rotate("--overlap", "1h")
			g.takeOver()
			g.wantOpen("192.0.2.2", "192.0.2.1:22", "rotated with an overlap")
			if start != "running" {
				g.server.stop(syscall.SIGKILL)
				g.start()
				g.wantOpen("192.0.2.2", "192.0.2.1:22", "started again")
				g.server.stop(syscall.SIGKILL)
			}
			g.rotate("--overlap", "0", "--force")
			g.rotate("--overlap", "0")
			switch start {
			case "running":
				g.takeOver()
			case "run":
				g.start()
			case "guard":
				if out, code := g.run(g.host, "spa-server", "guard", "--config", g.dir); code != 0 {
					t.Fatalf("guard: exit %d\n%s", code, out)
				}
			}
			g.wantDark("192.0.2.2", "192.0.2.1:22", "the key is lost")
		})
	}
}

// TestRevokedWhileStarting: a revocation between reading the keys and the first packet counts.
func TestRevokedWhileStarting(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.server.stop(syscall.SIGTERM)
	lab.Must(t, os.Remove(filepath.Join(g.dir, "audit.jsonl")))
	ledger := lab.Value(os.Open(filepath.Join(g.dir, "grants")))(t)
	defer ledger.Close()
	if err := syscall.Flock(int(ledger.Fd()), syscall.LOCK_EX); err != nil { // the start waits here to load the guard
		t.Fatal(err)
	}
	g.launch(g.command("spa-server", "run", "--config", g.dir))
	lab.Eventually(t, "the server to have read its keys", func() bool {
		_, err := os.Stat(filepath.Join(g.dir, "audit.jsonl"))
		return err == nil
	})
	g.must("spa-keygen", "revoke", "alice", "--config", g.dir)
	lab.Must(t, syscall.Flock(int(ledger.Fd()), syscall.LOCK_UN))
	lab.Eventually(t, "the server to take the revocation",
		func() bool { return strings.Contains(g.server.log(), "client revoked") })
	if out, code := g.open("--timeout", "500ms"); code != 4 {
		t.Errorf("alice, revoked during the start: exit %d, want 4\n%s", code, out)
	}
}

// TestDirectoryReplaced: a server that could no longer see a revocation exits.
func TestDirectoryReplaced(t *testing.T) {
	g := opened(t)
	clients := filepath.Join(g.dir, "clients")
	lab.Must(t, os.Rename(clients, clients+".old"))
	lab.Eventually(t, "the server to end", g.server.done)
	if code := g.server.stop(0); code != 1 || !strings.Contains(g.server.log(), "moved away") {
		t.Errorf("exit %d, want 1 and a reason\n%s", code, g.server.log())
	}
}

// TestMendedMode: a revocation in a file with a refused mode counts once the mode is fixed.
func TestMendedMode(t *testing.T) {
	g := opened(t)
	path := filepath.Join(g.dir, "clients", "alice.toml")
	data := lab.Value(os.ReadFile(path))(t)
	next := filepath.Join(g.dir, "next")
	lab.Must(t, os.WriteFile(next, append(data, "revoked = 2026-01-01T00:00:00Z\n"...), 0o644))
	g.handOver(next)
	lab.Must(t, errors.Join(os.Chmod(next, 0o644), os.Rename(next, path)))
	lab.Eventually(t, "the mode to be refused", func() bool { return strings.Contains(g.server.log(), "chmod") })
	g.handOver(path)
	lab.Eventually(t, "what alice has open to be shut", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:22") })
}

// TestCloseByPort: a grant opened by service name can be closed by port too.
func TestCloseByPort(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "ssh,tcp/22"))
	g.serve(":22")
	g.start()
	opening := request()
	opening.For = 10 * time.Minute
	g.wantReceipt("192.0.2.2", g.seal(opening, bob), bob, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened as ssh")
	closing := request()
	closing.Type = spa.TypeClose
	closing.Services = []service.Service{{Proto: service.TCP, Port: 22}}
	g.wantReceipt("192.0.2.2", g.seal(closing, bob), bob, spa.Closed)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "closed as tcp/22")
}

// TestLostTerminal: the server keeps running when its terminal goes away.
func TestLostTerminal(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.server.cmd.Process.Signal(syscall.SIGHUP)
	g.mustOpen()
}

// TestResetClock: the journal of a clock that was ahead is removed on request, while no server runs.
func TestResetClock(t *testing.T) {
	g := newGateway(t)
	g.start()
	wantSaid(t, g.fails(1, "init", "--reset-clock", "--config", g.dir), "spa-server is already running")
	g.server.stop(syscall.SIGTERM)
	g.fails(2, "init", "--reset-clock", "--address", "192.0.2.1", "--config", g.dir)
	g.fails(0, "init", "--reset-clock", "--config", g.dir)
	g.start()
	wantSaid(t, g.server.log(), "refusing all knocks for now", "there was no journal")
	if out, code := g.open("--timeout", "500ms"); code != 4 {
		t.Errorf("within a window of the new journal: exit %d, want 4\n%s", code, out)
	}
}
