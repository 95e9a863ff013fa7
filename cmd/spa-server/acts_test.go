package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// acts returns the acts in the audit log: what and on whom.
func (g *gateway) acts() []string {
	g.t.Helper()
	var list []string
	for _, line := range g.auditLines() {
		act, ok := line["act"]
		if !ok {
			continue
		}
		text := fmt.Sprint(line["program"], " ", act)
		if client, ok := line["client"]; ok {
			text += fmt.Sprint(" ", client)
		}
		list = append(list, text)
		if line["uid"] != float64(0) || line["sudo_user"] != "carol" || line["gateway"] != "gw" || line["version"] == "" ||
			line["time"] == nil || line["verdict"] != nil {
			g.t.Errorf("%s: got %v", text, line)
		}
	}
	return list
}

// TestActs: the audit log has each act of an administrator once, whether the server runs or not, and neither keys nor
// tokens.
func TestActs(t *testing.T) {
	lab.NeedRoot(t)
	t.Setenv("SUDO_USER", "carol")
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprint("running ", running), func(t *testing.T) {
			g := newGateway(t)
			want := []string{"spa-keygen new alice"}
			if running {
				g.start()
				g.mustOpen()
			}
			var tokens []string
			for _, act := range []string{"new bob --allow ssh,tcp/22", "rotate bob", "set bob max_for=5m", "revoke bob",
				"rotate-gate"} {
				words := strings.Fields(act)
				tokens = append(tokens, strings.TrimSpace(g.must("spa-keygen", append(words, "--config", g.dir)...)))
				want = append(want, "spa-keygen "+strings.Join(words[:min(2, len(words))], " "))
			}
			g.must("spa-server", "set", "window=20s", "--config", g.dir)
			want = append(want, "spa-server set")
			if running {
				g.must("spa-server", "reload", "--config", g.dir)
				g.must("spa-server", "revoke", "alice", "--config", g.dir)
				want = append(want, "spa-server reload", "spa-server revoke alice")
			}
			out, code := g.run(g.host, "spa-server", "teardown", "--config", g.dir)
			if code != 0 || strings.Contains(out, "warning") {
				t.Errorf("teardown: exit %d, %s", code, out)
			}
			want = append(want, "spa-server teardown")
			if got := g.acts(); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			data := lab.Value(os.ReadFile(filepath.Join(g.dir, "audit.jsonl")))(t)
			for _, token := range tokens[:2] {
				if strings.Contains(string(data), token) || !strings.HasPrefix(token, "spa1") {
					t.Errorf("a token is in the log")
				}
			}
			if key := g.profile().Key.Reveal(); strings.Contains(string(data), key) {
				t.Error("a key is in the log")
			}
		})
	}
}

// TestActsNeverFail: an act whose line cannot be written is carried out anyway, with a warning.
func TestActsNeverFail(t *testing.T) {
	g := newGateway(t)
	g.set("audit", "file", `"gone/audit.jsonl"`)
	for _, act := range []string{"new bob --allow ssh", "rotate bob", "set bob max_for=5m", "revoke bob",
		"rotate-gate"} {
		out, code := g.run(g.host, "spa-keygen", append(strings.Fields(act), "--config", g.dir)...)
		if code != 0 {
			t.Errorf("%s: exit %d\n%s", act, code, out)
		}
		wantSaid(t, out, "warning: the audit log has no line of this")
	}
}

// TestServerWritesAfterActs: the server can write to a log that spa-keygen created.
func TestServerWritesAfterActs(t *testing.T) {
	lab.NeedRoot(t)
	g := newGateway(t)
	state := t.TempDir()
	g.give(state)
	g.rewrite("server.toml", `file = "audit.jsonl"`, `file = "`+filepath.Join(state, "audit.jsonl")+`"`)
	g.must("spa-keygen", "rotate", "alice", "--config", g.dir)
	dir := lab.Value(os.Stat(state))(t)
	file := lab.Value(os.Stat(filepath.Join(state, "audit.jsonl")))(t)
	if got, want := file.Sys().(*syscall.Stat_t).Uid, dir.Sys().(*syscall.Stat_t).Uid; got != want {
		t.Errorf("the log belongs to user %d, and its directory to %d", got, want)
	}
}

// TestActsInTheJournal: acts go to the journal like decisions.
func TestActsInTheJournal(t *testing.T) {
	g := newGateway(t)
	journal, run := newFakeJournal(t)
	g.rewrite("server.toml", `file = "audit.jsonl"`, `file = "journal"`)
	cmd := lab.See(g.command("spa-keygen", "new", "bob", "--allow", "ssh", "--config", g.dir),
		map[string]string{"/run": run})
	if out, code := lab.Run(t, g.host, cmd); code != 0 || strings.Contains(out, "warning") {
		t.Fatalf("exit %d: %s", code, out)
	}
	journal.wantMessage("SPA_ACT=new", "SPA_PROGRAM=spa-keygen", "SPA_CLIENT=bob", "SPA_SERVICE=ssh", "PRIORITY=5",
		"SPA_GATEWAY=gw", "SPA_UID=0")
}

// TestOlderServerObeys: after an upgrade of the programs, commands still work with an old server, which does not know
// their new fields.
func TestOlderServerObeys(t *testing.T) {
	g := newGateway(t)
	lab.ServeUnix(t, filepath.Join(g.dir, "control.sock"), func(conn net.Conn) {
		answer := `{"revoked":{"ended":[],"sessions":1}}` + "\n" + `{"done":true}` + "\n"
		if line, _ := bufio.NewReader(conn).ReadString('\n'); strings.Contains(line, `"by"`) {
			answer = `{"done":true,"error":"unknown request: is spa-server older than this client?"}` + "\n"
		}
		fmt.Fprint(conn, answer)
	})
	if out := g.must("spa-server", "revoke", "alice", "--cut", "--config", g.dir); !strings.Contains(out,
		"sessions cut: 1") {
		t.Errorf("got %s", out)
	}
}
