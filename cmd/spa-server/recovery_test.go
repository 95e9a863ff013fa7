package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

var wordLines = regexp.MustCompile(`(?m)^ ?[0-9]+  [a-z].*$`)

// importDoor imports the words of a page as host gw-door, in a client's directory of its own.
func (g *gateway) importDoor(page string) (home string) {
	g.t.Helper()
	home = g.t.TempDir()
	file := filepath.Join(home, "typed")
	typed := strings.ToUpper(strings.Join(wordLines.FindAllString(page, -1), "\n"))
	lab.Must(g.t, os.WriteFile(file, []byte(typed), 0o600))
	g.must("spa-client", "import", file, "--config", home)
	return home
}

// newDoor makes a recovery client and imports its page.
func (g *gateway) newDoor(uses string) (home string) {
	g.t.Helper()
	page := g.must("spa-keygen", "new", "door", "--allow", "ssh", "--recovery", "--uses", uses, "--config", g.dir)
	return g.importDoor(page)
}

// knockDoor opens ssh by the second door.
func (g *gateway) knockDoor(home string) (string, int) {
	g.t.Helper()
	return g.run(g.client, "spa-client", "open", "ssh", "--host", "gw-door", "--config", home, "--source", "192.0.2.2",
		"--timeout", lab.Patience.String())
}

// wantDoor knocks by the second door, and wants it open or used up.
func (g *gateway) wantDoor(home string, open bool, when string) {
	g.t.Helper()
	out, code := g.knockDoor(home)
	if open && code != 0 || !open && (code != 3 || !strings.Contains(out, "no uses left")) {
		g.t.Errorf("%s: exit %d, %s\nserver:\n%s", when, code, out, g.server.log())
	}
}

// wantLeft checks what list, show and status say.
func (g *gateway) wantLeft(want string) {
	g.t.Helper()
	for _, command := range [][]string{{"spa-keygen", "list"}, {"spa-keygen", "show", "door"}, {"spa-server", "status"}} {
		if out := g.must(command[0], append(command[1:], "--config", g.dir)...); !strings.Contains(out, want) {
			g.t.Errorf("%v does not say %q:\n%s", command, want, out)
		}
	}
}

func (g *gateway) checks() string {
	g.t.Helper()
	out, _ := g.run(g.host, "spa-server", "check", "--config", g.dir)
	return out
}

func (g *gateway) restart() {
	g.t.Helper()
	g.server.stop(syscall.SIGKILL)
	g.start()
}

// TestRecovery: a printed key opens as often as it may, and no more: over kill -9, restarts, reloads, an edited and a
// restored client file, and a moved state. Each use is an alarm. A new page has fresh uses.
func TestRecovery(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.serve(":22")
	g.start()
	home := g.newDoor("4")
	file := filepath.Join(g.dir, "clients", "door.toml")
	original := lab.Value(os.ReadFile(file))(t)
	g.wantDoor(home, true, "first")
	g.reachesWithin("192.0.2.2", "192.0.2.1:22", lab.Patience)
	g.wantLeft("3 of 4 uses left, the last was at")
	g.restart()
	g.wantDoor(home, true, "after kill -9")
	g.server.stop(syscall.SIGTERM)
	lab.Must(t, os.Remove(file))
	lab.Must(t, os.WriteFile(file, original, 0o600))
	g.handOver(file)
	state := filepath.Join(t.TempDir(), "state")
	g.must("spa-server", "move-state", state, "--config", g.dir)
	g.start()
	g.wantLeft("2 of 4 uses left")
	g.wantDoor(home, true, "after a restored file and a move")
	if out := g.checks(); !strings.Contains(out, "its recovery key has one use left") {
		t.Errorf("check says:\n%s", out)
	}
	g.wantDoor(home, true, "the last")
	g.wantDoor(home, false, "once more")
	if out := g.checks(); !strings.Contains(out, "has no uses left: the printed page opens nothing") ||
		!strings.Contains(out, "spa-keygen rotate door") {
		t.Errorf("check says:\n%s", out)
	}
	g.rewrite("clients/door.toml", `recovery = 4`, "recovery = 50")
	g.restart()
	g.wantDoor(home, false, "with more uses in the file")
	g.rewrite("clients/door.toml", `recovery = 50`, "")
	g.restart()
	g.wantDoor(home, false, "as an ordinary client's file")
	if out := g.checks(); !strings.Contains(out, "it is no longer a recovery client, and its key is limited") {
		t.Errorf("check says:\n%s", out)
	}
	g.must("spa-keygen", "set", "door", "recovery=1", "--config", g.dir)
	next := g.importDoor(g.must("spa-keygen", "rotate", "door", "--config", g.dir))
	g.wantDoor(next, true, "with a new page")
	g.wantDoor(next, false, "which has one use")
	g.wantAlarms(string(lab.Value(os.ReadFile(filepath.Join(state, "audit.jsonl")))(t)), 5, 4)
}

// wantAlarms checks the audit log: each use, and each refusal, has a line of its own.
func (g *gateway) wantAlarms(text string, used, refused int) {
	g.t.Helper()
	got := map[any]int{}
	for _, line := range objects[map[string]any](g.t, text) {
		if line["act"] == "recovery" && line["client"] == "door" && line["source"] == "192.0.2.2" {
			got[line["result"]]++
		}
	}
	if got["used"] != used || got["refused"] != refused {
		g.t.Errorf("the audit log has %v, want %d uses and %d refusals", got, used, refused)
	}
	if log := g.server.log(); !strings.Contains(log, "RECOVERY KEY") {
		g.t.Errorf("the log has no alarm:\n%s", log)
	}
}

// TestRecoveryAtOnce: a printed key that is used by many at once lets in no more of them than it has uses.
func TestRecoveryAtOnce(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.start()
	home := g.newDoor("3")
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 8 {
		wg.Go(func() {
			_, code := g.knockDoor(home)
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	wg.Wait()
	if codes[0] != 3 || codes[3] != 5 {
		t.Errorf("exit codes %v, want 3 times 0 and 5 times 3\n%s", codes, g.server.log())
	}
}

// TestRecoveryStateLost: with an older state directory, or without it, the printed key opens nothing, other keys do,
// and check and status say what to do.
func TestRecoveryStateLost(t *testing.T) {
	older := map[string][]byte{} // the counts from before the first use
	for name, lose := range map[string]func(path string) error{
		"removed":      os.Remove,
		"written over": func(path string) error { return os.WriteFile(path, older[path], 0o600) },
		"restored": func(path string) error {
			text, err := os.ReadFile(path)
			return errors.Join(err, os.Remove(path), os.WriteFile(path, text, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			g.start()
			home := g.newDoor("3")
			path := filepath.Join(g.dir, config.RecoveryFile)
			older[path] = lab.Value(os.ReadFile(path))(t)
			g.wantDoor(home, true, "before")
			g.server.stop(syscall.SIGTERM)
			lab.Must(t, lose(path))
			g.start()
			g.wantDoor(home, false, name)
			g.mustOpen()
			if out := g.must("spa-server", "status", "--config", g.dir); !strings.Contains(out, "door CANNOT KNOCK") {
				t.Errorf("status says:\n%s", out)
			}
			if out := g.checks(); !strings.Contains(out, "its recovery key is refused") &&
				!strings.Contains(out, "refuses its recovery key") {
				t.Errorf("check says:\n%s", out)
			}
			next := g.importDoor(g.must("spa-keygen", "rotate", "door", "--config", g.dir))
			g.wantDoor(next, true, "with a new page")
		})
	}
}

// TestConfirmByRecovery: on a trial that the second door must confirm, only a connection through it does.
func TestConfirmByRecovery(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.serve(":22")
	home := g.newDoor("1")
	g.start("--confirm", "10m", "--recovery", "door")
	g.mustOpen("--source", "192.0.2.3")
	g.reachesWithin("192.0.2.3", "192.0.2.1:22", lab.Patience)
	if out := g.must("spa-server", "status", "--config", g.dir); !strings.Contains(out, "unless door connects") {
		t.Errorf("status says:\n%s", out)
	}
	g.wantDoor(home, true, "on trial")
	g.reachesWithin("192.0.2.2", "192.0.2.1:22", lab.Patience)
	lab.Eventually(t, "the confirmation", func() bool {
		return strings.Contains(g.server.log(), "the guard is confirmed") &&
			strings.Contains(g.server.log(), "through a grant\" client=door")
	})
	g.server.stop(syscall.SIGTERM)
	for args, want := range map[string]string{
		"--recovery door":               "--recovery needs --confirm",
		"--confirm 5m --recovery alice": "alice: not a recovery client with a valid key and uses left",
		"--confirm 5m --recovery door":  "door: not a recovery client with a valid key and uses left", // it has no uses left
	} {
		out, code := g.run(g.host, "spa-server", append([]string{"run", "--config", g.dir}, strings.Fields(args)...)...)
		if code == 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit %d, %s", args, code, out)
		}
	}
}

// TestRecoveryKilled: a server that is killed again and again while several use the printed key lets in no more of them
// than it has uses, and forgets none of those that it let in.
func TestRecoveryKilled(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	const uses = 5
	home := g.newDoor("5")
	opened := 0
	for range 8 {
		g.start()
		codes := make(chan int, 3)
		for range cap(codes) {
			go func() {
				_, code := g.run(g.client, "spa-client", "open", "ssh", "--host", "gw-door", "--config", home, "--source",
					"192.0.2.2", "--timeout", "1s")
				codes <- code
			}()
		}
		for i := range cap(codes) {
			if code := <-codes; code == 0 {
				opened++
			}
			if i == 0 {
				g.server.stop(syscall.SIGKILL)
			}
		}
	}
	g.start()
	left := g.status().Recovery[0].Left
	if opened == 0 || opened > uses || left > uses-opened {
		t.Errorf("%d of %d were let in, and %d are left\n%s", opened, uses, left, g.server.log())
	}
}

// TestRecoveryNotOwn: a request to let in a network with an address of the gateway is refused, and so is no use.
func TestRecoveryNotOwn(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.serve(":22")
	g.start()
	home := g.newDoor("1")
	g.must("spa-keygen", "set", "door", "widest4=24", "--config", g.dir)
	out, code := g.run(g.client, "spa-client", "open", "ssh", "--host", "gw-door", "--config", home, "--let-in",
		"192.0.2.0/24", "--timeout", lab.Patience.String())
	if code != 3 {
		t.Errorf("exit %d: %s", code, out)
	}
	g.wantLeft("1 of 1 uses left")
	g.wantDoor(home, true, "afterwards")
}
