package action

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestRights: a server that cannot become the user of a program does not start, and names the file that helps. For its
// own user it needs no right.
func TestRights(t *testing.T) {
	c := gateway(t, map[string]config.Action{"a": shell("exit 0", time.Minute)})
	lab.Must(t, lab.AsUser(t, 65534, func() error { return CheckRights(c) }))
	err := lab.AsUser(t, 1, func() error { return CheckRights(c) })
	if err == nil || !strings.Contains(err.Error(), DropIn) || !strings.Contains(err.Error(), "service.a.user") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join("../..", DropIn)); err != nil {
		t.Error(err)
	}
}

// asUser is set, to the directory of server.toml, in a test that runs as an ordinary user.
const asUser = "SPA_TEST_ACTIONS"

// TestWithoutRoot: a server that was not started as root runs programs as other users and ends them with the three
// capabilities of the file for its unit, and programs have none of these.
func TestWithoutRoot(t *testing.T) {
	if dir := os.Getenv(asUser); dir != "" {
		c := lab.Value(config.Load(dir))(t)
		r := started(t, c)
		for _, events := range r.run(t, job("a"), job("b")) {
			fmt.Println(events[len(events)-1].What, strings.Join(printed(events), " "))
		}
		return
	}
	script := "id -un; grep -E ^CapPrm /proc/self/status"
	c := gateway(t, map[string]config.Action{"a": shell(script, time.Minute), "b": shell("setsid sleep 100", time.Second)})
	bin := filepath.Join(t.TempDir(), "test")
	lab.Must(t, os.WriteFile(bin, lab.Value(os.ReadFile("/proc/self/exe"))(t), 0o755))
	for _, path := range []string{filepath.Dir(bin), c.Dir} {
		lab.Must(t, os.Chmod(path, 0o755))
		lab.Must(t, os.Chmod(filepath.Dir(path), 0o755))
	}
	lab.Must(t, os.Chmod(filepath.Join(c.Dir, config.FileName), 0o644))
	cmd := exec.Command(bin, "-test.run", "^TestWithoutRoot$")
	cmd.Env, cmd.Dir = append(os.Environ(), asUser+"="+c.Dir), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1, Gid: 1},
		AmbientCaps: []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}}
	out, err := cmd.CombinedOutput()
	want := "ended nobody CapPrm: 0000000000000000\ntimed out"
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("got %s, %v, want %s", out, err, want)
	}
}
