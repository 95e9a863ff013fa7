package keeper

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// TestKeeperLockOfAnother: a process that holds the keeper's lock but is not a keeper is not killed.
func TestKeeperLockOfAnother(t *testing.T) {
	dir := t.TempDir()
	file := lab.Value(OpenFile(dir, "", true))(t)
	defer file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// A process does not see its own lock, so another one must hold it.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestHoldsALock$")
	cmd.Env = append(os.Environ(), "FIREWALL_LOCK="+file.Name())
	stdin, err := cmd.StdinPipe() // the process ends when this closes
	lab.Must(t, err)
	defer stdin.Close()
	lab.Must(t, cmd.Start())
	defer cmd.Wait()
	defer cancel()
	lab.Eventually(t, "the lock to be held", func() bool {
		pid, err := LockHolder(file)
		return err == nil &&
			pid == cmd.Process.Pid
	})
	if err := EndHolder(file); err == nil || !strings.Contains(err.Error(), "is not a keeper") {
		t.Errorf("got %v, want that it is not a keeper", err)
	}
	if pid, err := LockHolder(file); err != nil || pid != cmd.Process.Pid {
		t.Errorf("the lock is held by %d, %v, want %d: it was killed", pid, err, cmd.Process.Pid)
	}
}

// TestHoldsALock is not a test but the other process of TestKeeperLockOfAnother.
func TestHoldsALock(t *testing.T) {
	path := os.Getenv("FIREWALL_LOCK")
	if path == "" {
		return
	}
	f := lab.Value(os.OpenFile(path, os.O_RDWR, 0))(t)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	lab.Must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &lock))
	io.Copy(io.Discard, os.Stdin)
}
