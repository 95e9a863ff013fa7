package keys

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// asNobody runs f without root's right to write everywhere: on this thread, the file system sees another user.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	defer syscall.RawSyscall(syscall.SYS_SETFSUID, 0, 0, 0)
	f()
}

// TestAnothersDirectory runs as nobody in a directory of root that nobody may write to: the server would refuse files
// written there by that user.
func TestAnothersDirectory(t *testing.T) {
	if d := os.Getenv("TEST_ANOTHERS_DIRECTORY"); d != "" {
		err := WriteGate(filepath.Join(d, "gate.key"), NewGateKey())
		if err == nil || !strings.Contains(err.Error(), "belongs to root: run this as root") {
			t.Errorf("got %v, want who to run it as", err)
		}
		return
	}
	needRoot(t)
	dir := t.TempDir()
	lab.Must(t, errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755)))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAnothersDirectory$")
	cmd.Env = append(os.Environ(), "TEST_ANOTHERS_DIRECTORY="+dir, "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lab.OnlyFiles(t, dir)
}
