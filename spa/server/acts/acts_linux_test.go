package acts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// gateway writes the files of a gateway whose audit log is at a path.
func gateway(t *testing.T, audit string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	c := config.Default(dir)
	c.Name, c.Address, c.ServerID, c.Audit.File = "gw", "192.0.2.1", keys.NewServerID(), audit
	lab.Must(t, config.Create(dir, c))
	return dir
}

func revoked() control.Act { return control.Act{Act: "revoke", Program: "spa-keygen", Client: "bob"} }

// TestUser: the user is that of the server.
func TestUser(t *testing.T) {
	if systemUser != setup.SystemUser {
		t.Errorf("it is %s, and the server's %s", systemUser, setup.SystemUser)
	}
}

// TestLedAstray: a user other than root who can change the way to the log leads root to no file of root's.
func TestLedAstray(t *testing.T) {
	lab.NeedRoot(t)
	uid, gid, err := sandbox.Becomes(systemUser)
	if err != nil {
		t.Fatal(err)
	}
	state, precious := t.TempDir(), t.TempDir()
	victim := filepath.Join(precious, "audit.jsonl")
	link, own := filepath.Join(state, "log"), filepath.Join(state, "own")
	if err := errors.Join(os.Chown(state, uid, gid), os.Symlink(precious, link), os.Lchown(link, uid, gid),
		os.Mkdir(own, 0o700), os.Chown(own, uid, gid), os.Symlink(victim, filepath.Join(own, "link.jsonl")),
		os.Chmod(filepath.Dir(state), 0o755), os.Chmod(state, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, there := range []bool{false, true} {
		if there {
			lab.Must(t, os.WriteFile(victim, []byte("precious\n"), 0o600))
		}
		for _, path := range []string{filepath.Join(link, "audit.jsonl"), filepath.Join(own, "link.jsonl")} {
			if err := Record(context.Background(), gateway(t, path), "1", revoked()); err == nil {
				t.Errorf("%s: written", path)
			}
		}
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "precious\n" {
		t.Errorf("root's file is %q, %v", data, err)
	}
	path := filepath.Join(own, "audit.jsonl")
	if err := Record(context.Background(), gateway(t, path), "1", revoked()); err != nil {
		t.Errorf("a log of the server's user: %v", err)
	}
}

// TestOlderServer: a server that does not know acts yet leaves the line to the program.
func TestOlderServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	dir := gateway(t, path)
	l := lab.Value(net.Listen("unix", filepath.Join(dir, control.SocketName)))(t)
	defer l.Close()
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		asked <- line
		conn.Write([]byte(`{"done":true,"error":"unknown request: is spa-server older than this client?"}` + "\n"))
	}()
	lab.Must(t, Record(context.Background(), dir, "1.2 (go)", revoked()))
	if line := <-asked; !strings.Contains(line, `"command":"record"`) {
		t.Errorf("the server was asked %s", line)
	}
	data := lab.Value(os.ReadFile(path))(t)
	var line map[string]any
	if err := json.Unmarshal(data, &line); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	if line["act"] != "revoke" || line["client"] != "bob" || line["gateway"] != "gw" || line["version"] != "1.2" {
		t.Errorf("got %v", line)
	}
}

// TestClaims: claims are cut short and made printable.
func TestClaims(t *testing.T) {
	who := Who(&control.By{SudoUser: "a\x1b[2J\n\u202eb" + strings.Repeat("é", 200), LoginUID: "1000"}, 0)
	if len(who.SudoUser) > 100 || strings.ContainsAny(who.SudoUser, "\x1b\n\u202e") || who.LoginUID != "1000" {
		t.Errorf("got %+v", who)
	}
	if who := Who(nil, 7); who.UID != 7 || who.SudoUser != "" {
		t.Errorf("got %+v", who)
	}
}

// TestHungServer: a server that does not answer holds the program up for a while only.
func TestHungServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	dir := gateway(t, path)
	l := lab.Value(net.Listen("unix", filepath.Join(dir, control.SocketName)))(t) // and never accepts
	defer l.Close()
	start := time.Now()
	if err := Record(context.Background(), dir, "1", revoked()); err != nil {
		t.Error(err)
	}
	if waited := time.Since(start); waited > lab.Patience {
		t.Errorf("waited for %v", waited)
	}
}

// TestTeardown: the server whose guard was torn down is not asked to write the line of that, because it may write it
// and stop before it answers.
func TestTeardown(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	conf := gateway(t, path)
	l := lab.Value(net.Listen("unix", filepath.Join(conf, control.SocketName)))(t)
	asked := make(chan struct{})
	go func() {
		if c, err := l.Accept(); err == nil {
			close(asked)
			c.Close()
		}
	}()
	lab.Must(t, Record(t.Context(), conf, "1", control.Act{Act: "teardown", Program: "spa-server"}))
	select {
	case <-asked:
		t.Error("the server was asked")
	default:
	}
	l.Close()
	if data := lab.Value(os.ReadFile(path))(t); strings.Count(string(data), "teardown") != 1 {
		t.Errorf("the log is %q", data)
	}
}
