package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/check"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// asking are the commands that print a server's replies.
var asking = []string{"status", "grants", "watch", "revoke alice", "reload"}

// filled returns an answer with the text in every field, ending with Error or not.
func filled(t testing.TB, text string, denied bool) []byte {
	t.Helper()
	var reply control.Reply
	lab.Fill(&reply, text)
	end := control.Reply{Done: true}
	if denied {
		end.Error, end.Hint = reply.Error, reply.Hint
	}
	first, err := json.Marshal(reply)
	last, err2 := json.Marshal(end)
	lab.Must(t, errors.Join(err, err2))
	return slices.Concat(first, []byte{'\n'}, last, []byte{'\n'})
}

// takenOver starts a server that sends this answer to each client.
func takenOver(t testing.TB, answer []byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(dir, config.FileName), []byte("state = \".\"\n"), 0o600))
	lab.ServeUnix(t, filepath.Join(dir, control.SocketName), func(conn net.Conn) { conn.Write(answer) })
	return dir
}

// printed returns a command's output from a server's reply, on both streams.
func printed(dir, command string) string {
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	defer func(args []string) { os.Args = args }(os.Args)
	os.Args = append([]string{"spa-server"}, strings.Fields(command+" --config "+dir)...)
	cli.Main("spa-server", root)
	return out.String()
}

func notPrintable(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// TestTakenOverServer: whatever text a server sends, in any field, root's terminal shows as many lines as for a
// harmless one, and no control characters.
func TestTakenOverServer(t *testing.T) {
	const hostile = "a\x1b[2J\r\t\f\v\u202eb\u2066\u2028\u009b\u200b\x7f"
	for _, command := range asking {
		for _, flag := range []string{"", " --json"} {
			for _, denied := range []bool{false, true} {
				t.Run(fmt.Sprint(command, flag, denied), func(t *testing.T) {
					breaks := "\n"
					if denied {
						breaks = "" // an error has a line for each fault
					}
					got := printed(takenOver(t, filled(t, hostile+breaks, denied)), command+flag)
					harmless := printed(takenOver(t, filled(t, "x", denied)), command+flag)
					if strings.ContainsFunc(got, notPrintable) {
						t.Errorf("it prints %q", got)
					}
					if strings.Count(got, "\n") != strings.Count(harmless, "\n") || !strings.Contains(harmless, "x") {
						t.Errorf("it prints %q, and of harmless texts %q", got, harmless)
					}
				})
			}
		}
	}
}

// TestHostileFindings: the same for check, with names of processes and files, and for inspect, with capture files.
func TestHostileFindings(t *testing.T) {
	const hostile = "a\x1b[2J\r\u202eb\u2028"
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		cmd := newRoot()
		cmd.SetOut(&out)
		var finding check.Finding
		var decision control.Decision
		lab.Fill(&finding, hostile)
		lab.Fill(&decision, hostile)
		finding.Severity = check.Notice // one of ours
		lab.Must(t, errors.Join(printFinding(cmd, finding, asJSON), printPast(cmd, decision, asJSON)))
		if strings.ContainsFunc(out.String(), notPrintable) {
			t.Errorf("got %q", &out)
		}
	}
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetOut(&out)
	err := printFinding(cmd, check.Finding{Severity: check.Notice, Subject: "a\nproblem: b", Text: "c\nproblem: d",
		Advice: "e\nproblem: f"}, false)
	if err != nil || strings.Contains(out.String(), "\nproblem") {
		t.Errorf("got %q, %v", &out, err)
	}
}

// FuzzTakenOverServer: the same for any text; and no command panics.
func FuzzTakenOverServer(f *testing.F) {
	f.Add(filled(f, "x\u202e\n", false))
	f.Add(filled(f, "x\u202e\n", true))
	f.Add([]byte(`{"status":{"since":"0001-01-01T00:00:00Z","seen":[{}],"capture":{"fragment":1}}}`))
	f.Add([]byte(`{"decision":{"until":["9999-12-31T23:59:59Z"],"ahead":-1e308}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		dir := takenOver(t, answer)
		for _, command := range asking {
			for _, flag := range []string{"", " --json"} {
				if out := printed(dir, command+flag); strings.ContainsFunc(out, notPrintable) {
					t.Errorf("%s%s prints %q", command, flag, out)
				}
			}
		}
	})
}

// plants are what the owner of the state directory can put there under a name of ours.
var plants = map[string]func(path, victim string) error{
	"symbolic link":   func(path, victim string) error { return os.Symlink(victim, path) },
	"link to nothing": func(path, victim string) error { return os.Symlink(victim+"-new", path) },
	"hard link":       func(path, victim string) error { return os.Link(victim, path) },
	"pipe":            func(path, _ string) error { return unix.Mkfifo(path, 0o666) },
	"directory":       func(path, _ string) error { return os.Mkdir(path, 0o777) },
	"holes": func(path, _ string) error {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return os.Truncate(path, 1<<40)
	},
	"noise": func(path, _ string) error { return os.WriteFile(path, bytes.Repeat([]byte{0xa5}, 1<<16), 0o600) },
}

// TestPlantedState: whatever a compromised daemon leaves in its state directory, each of root's commands ends, none
// panics, and root's own files stay unchanged.
func TestPlantedState(t *testing.T) {
	lab.NeedRoot(t)
	g := newGateway(t)
	state := filepath.Join(filepath.Dir(g.dir), "state")
	g.rewrite("server.toml", `state = "\."`, `state = "`+state+`"`)
	g.rewrite("server.toml", `file = "audit.jsonl"`, `file = "`+filepath.Join(state, "audit.jsonl")+`"`)
	victim := filepath.Join(filepath.Dir(g.dir), "victim")
	g.freshState(t, state)
	g.startAndStop(t)
	const aside = config.JournalFile + ".damaged" // written when there is damage
	names := []string{aside}
	entries := lab.Value(os.ReadDir(state))(t)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) < 6 {
		t.Errorf("the server has no more than %q", names)
	}
	for _, name := range names {
		for what, plant := range plants {
			t.Run(name+" is a "+what, func(t *testing.T) {
				uid := g.freshState(t, state)
				lab.Must(t, os.RemoveAll(victim))
				lab.Must(t, os.WriteFile(victim, []byte("root's\n"), 0o600))
				path := filepath.Join(state, name)
				lab.Must(t, plant(path, victim))
				if what != "hard link" {
					lab.Must(t, os.Lchown(path, uid, uid))
				}
				if name == aside {
					lab.Must(t, os.WriteFile(filepath.Join(state, config.JournalFile), []byte("damage"), 0o600))
				}
				g.everyCommand(t)
				wantUntouched(t, victim)
			})
		}
	}
}

// freshState makes an empty state directory that belongs to the server's user.
func (g *gateway) freshState(t *testing.T, state string) (uid int) {
	t.Helper()
	lab.Must(t, os.RemoveAll(state))
	lab.Must(t, os.Mkdir(state, 0o750))
	g.give(state)
	var st unix.Stat_t
	if err := unix.Stat(state, &st); err != nil || st.Uid == 0 {
		t.Fatalf("the state directory is root's: %v", err)
	}
	return int(st.Uid)
}

// everyCommand runs root's commands, and fails if one does not end.
func (g *gateway) everyCommand(t *testing.T) {
	t.Helper()
	for _, command := range append([]string{"check", "guard", "run", "teardown", "init --reset-clock", "run", "teardown"},
		asking...) {
		args := append(strings.Fields(command), "--config", g.dir)
		said := ""
		if command == "run" {
			said = g.startAndStop(t)
		} else {
			said = g.within(t, args...)
		}
		if strings.Contains(said, "panic") || strings.Contains(said, "goroutine ") {
			t.Errorf("%s: %s", command, said)
		}
	}
}

func (g *gateway) within(t *testing.T, args ...string) string {
	t.Helper()
	cmd := g.command("spa-server", args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	lab.Must(t, g.host.Start(cmd))
	awaitEnd(t, fmt.Sprint(args), cmd)
	return out.String()
}

// awaitEnd fails if a program does not end.
func awaitEnd(t *testing.T, what string, cmd *exec.Cmd) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(lab.Patience):
		cmd.Process.Kill()
		t.Fatalf("%s does not come to an end", what)
	}
}

// startAndStop runs the server until it is ready or has exited, and stops it.
func (g *gateway) startAndStop(t *testing.T) string {
	t.Helper()
	g.launch(g.command("spa-server", "run", "--config", g.dir))
	lab.Eventually(t, "the server to be ready or to end", func() bool {
		return strings.Contains(g.server.log(), "msg=ready") || g.server.done()
	})
	g.server.cmd.Process.Signal(syscall.SIGTERM)
	lab.Eventually(t, "the server to end", g.server.done)
	return g.server.log()
}

func wantUntouched(t *testing.T, victim string) {
	t.Helper()
	var st unix.Stat_t
	lab.Must(t, unix.Stat(victim, &st))
	data, err := os.ReadFile(victim)
	if err != nil || string(data) != "root's\n" || st.Uid != 0 || st.Gid != 0 || st.Mode&0o7777 != 0o600 {
		t.Errorf("root's file is %q, %d:%d %o now", data, st.Uid, st.Gid, st.Mode)
	}
	if _, err := os.Lstat(victim + "-new"); !os.IsNotExist(err) {
		t.Errorf("a file was made where a link leads: %v", err)
	}
}
