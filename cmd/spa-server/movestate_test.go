package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestMoveStateKilled: the command is killed at each system call that changes a file. The state that server.toml names
// is always whole, and the next call ends the move.
func TestMoveStateKilled(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedNamespaces(t)
	strace := lab.NeedProgram(t, "strace", "apt-get install strace")
	const calls = "openat,write,copy_file_range,sendfile,fsync,fchmod,fchown,renameat,renameat2,linkat,unlinkat,mkdirat"
	contents := map[string]string{"journal": "spent packets", "grants": "grants", "audit.jsonl": "{}\n"}
	command := func(args ...string) *exec.Cmd { return exec.Command("unshare", append([]string{"--net"}, args...)...) }
	kills := 0
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "spa")
		to := filepath.Join(t.TempDir(), "state")
		program := filepath.Join(bin, "spa-server")
		out, err := command(program, "init", "--config", dir, "--address", "gw.example.net").CombinedOutput()
		if err != nil {
			t.Fatalf("init: %v\n%s", err, out)
		}
		for name, text := range contents {
			lab.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
		whole := func(when string) {
			c := lab.Value(config.Load(dir))(t)
			for name, want := range contents {
				got, err := os.ReadFile(filepath.Join(c.State, name))
				if err != nil || string(got) != want {
					t.Errorf("%s at call %d: %s has %q, %v", when, n, filepath.Join(c.State, name), got, err)
				}
			}
		}
		out, err = command(strace, "-f", "-qq", "-o", os.DevNull, "-e", "trace="+calls, "-e",
			"inject="+calls+":signal=KILL:when="+strconv.Itoa(n), program, "move-state", to, "--config",
			dir).CombinedOutput()
		killed := err != nil
		whole("killed")
		if killed {
			kills++
			out, err = command(program, "move-state", to, "--config", dir).CombinedOutput()
		}
		if err != nil {
			t.Fatalf("at call %d: %v\n%s", n, err, out)
		}
		whole("afterwards")
		if c := lab.Value(config.Load(dir))(t); c.State != to {
			t.Errorf("at call %d: the state is in %s", n, c.State)
		}
		for name := range contents {
			if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("at call %d: %s was left: %v", n, name, err)
			}
		}
		if !killed {
			break
		}
	}
	if kills < 10 { // each thread counts its own calls
		t.Errorf("it was killed at %d calls only", kills)
	}
	t.Logf("killed at each of %d system calls", kills)
}

// TestMoveStateRunning: a running server keeps its state, and the error says what to do.
func TestMoveStateRunning(t *testing.T) {
	g := newGateway(t)
	g.start()
	to := filepath.Join(t.TempDir(), "state")
	out, code := g.run(g.host, "spa-server", "move-state", to, "--config", g.dir)
	if code != 1 || !strings.Contains(out, "hint: stop it first: systemctl stop spa-server.service") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}
