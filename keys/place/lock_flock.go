//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// lockless reports whether an error comes from a file system without locks, where a revocation must still be written.
func lockless(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ENOLCK) || errors.Is(err, syscall.EINVAL)
}

// lockPatience is how long another program may hold the lock. Anyone who can read the directory can hold it for ever,
// which must not stop a revocation.
const lockPatience = 10 * time.Second

// Lock keeps our other programs from changing files in the directory until unlock is called or the process ends.
func Lock(dir string) (unlock func(), err error) { return lockWithin(lockPatience, dir, false) }

// LockAlone is Lock for programs that must not work without the lock. It returns ErrHeld if another program holds it
// for longer than patience.
func LockAlone(dir string, patience time.Duration) (unlock func(), err error) {
	return lockWithin(patience, dir, true)
}

// lockWithin goes on without the lock if another program holds it for longer than patience, unless it is alone.
func lockWithin(patience time.Duration, dir string, alone bool) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	for give := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		held := errors.Is(err, syscall.EWOULDBLOCK)
		if held && !time.Now().Before(give) {
			err = nil // without the lock, then
			if alone {
				d.Close()
				return nil, fmt.Errorf("locking %s: %w", dir, ErrHeld)
			}
		}
		if err == nil || !held && !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil && !lockless(err) {
		d.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}
