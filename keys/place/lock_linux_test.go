package place

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestHeldDirectory: a user who can only read the directory can lock it, but cannot delay a change with that.
func TestHeldDirectory(t *testing.T) {
	dir := t.TempDir()
	d := lab.Value(os.Open(dir))(t)
	defer d.Close()
	lab.Must(t, syscall.Flock(int(d.Fd()), syscall.LOCK_EX))
	done := make(chan error)
	go func() {
		unlock, err := lockWithin(time.Millisecond, dir, false)
		if err == nil {
			unlock()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for who holds the lock")
	}
}

// TestLockAlone: a program that needs the lock does not go on without it.
func TestLockAlone(t *testing.T) {
	dir := t.TempDir()
	unlock, err := LockAlone(dir, time.Minute)
	lab.Must(t, err)
	if _, err := LockAlone(dir, 0); !errors.Is(err, ErrHeld) {
		t.Errorf("held: got %v", err)
	}
	unlock()
	unlock, err = LockAlone(dir, 0)
	lab.Must(t, err)
	unlock()
}
