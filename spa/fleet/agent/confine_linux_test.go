package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// confined is set in the process of TestConfined that runs as another user.
const confined = "SALLYPORT_TEST_CONFINED"

// TestConfined runs an agent as nobody and, confined, tries what it needs and what it must not do. The socket of a
// gateway that shares its address is root's, and its group's.
func TestConfined(t *testing.T) {
	if dir := os.Getenv(confined); dir != "" {
		inside(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		lab.Skip(t, "starts a process as another user: run it as root")
	}
	if err := Confine(&Config{To: t.TempDir() + "/x"}, t.TempDir()); !errors.Is(err, ErrRoot) {
		t.Errorf("runs as root: %v", err)
	}
	dir := lab.Value(os.MkdirTemp("", "agent"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, sub := range []string{"", "config", "out", "from", "other", "certs", "taken"} {
		lab.Must(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
		lab.Must(t, os.Chown(filepath.Join(dir, sub), 65534, 65534))
	}
	lab.Must(t, os.WriteFile(filepath.Join(dir, "from/web.bundle"), bundles(t)("web", 1), 0o644))
	lab.Must(t, os.WriteFile(filepath.Join(dir, "other/secret"), []byte("x"), 0o644))
	for _, file := range []string{"certs/ca.pem", "taken/fleet.taken"} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, file), []byte("x"), 0o644))
	}
	lab.ServeUnix(t, filepath.Join(dir, "share.sock"), func(net.Conn) {})
	lab.Must(t, os.Chown(filepath.Join(dir, "share.sock"), 0, 65534))
	lab.Must(t, os.Chmod(filepath.Join(dir, "share.sock"), 0o660))
	program := filepath.Join(dir, "test") // the build's own directory may be root's
	lab.Must(t, os.WriteFile(program, lab.Value(os.ReadFile(lab.Value(os.Executable())(t)))(t), 0o755))
	cmd := exec.Command(program, "-test.run=^TestConfined$", "-test.count=1")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), confined+"="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// inside is the confined process.
func inside(t *testing.T, dir string) {
	c := &Config{Gateway: "web", From: filepath.Join(dir, "from/web.bundle"), To: filepath.Join(dir, "out/web.bundle"),
		Every: time.Second, CA: filepath.Join(dir, "certs/ca.pem"), Taken: filepath.Join(dir, "taken/fleet.taken")}
	lab.Must(t, Confine(c, filepath.Join(dir, "config")))
	text := lab.Value(os.ReadFile(c.From))(t)
	agent := &Agent{Gateway: "web", To: c.To}
	agent.Log = discard()
	for range 2 {
		lab.Must(t, agent.take(text))
	}
	for _, file := range []string{c.CA, c.Taken, "/etc/hosts"} {
		lab.Value(os.ReadFile(file))(t)
	}
	lab.Must(t, lab.Value(net.Dial("unix", filepath.Join(dir, "share.sock")))(t).Close())
	for what, try := range map[string]func() error{
		"reads another directory":  func() error { _, err := os.ReadFile(filepath.Join(dir, "other/secret")); return err },
		"lists processes":          func() error { _, err := os.ReadDir("/proc"); return err },
		"reads user names":         func() error { _, err := os.ReadFile("/etc/passwd"); return err },
		"writes its configuration": func() error { return os.WriteFile(filepath.Join(dir, "config/agent.toml"), nil, 0o644) },
		"writes to its source":     func() error { return os.WriteFile(c.From, nil, 0o644) },
		"starts a program":         func() error { return exec.Command("/bin/true").Run() },
	} {
		if err := try(); err == nil {
			t.Errorf("the agent %s", what)
		} else if !errors.Is(err, os.ErrPermission) {
			t.Error(fmt.Errorf("%s: %w", what, err))
		}
	}
}
