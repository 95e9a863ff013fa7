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

// lockless reports whether an error is that of a file system without locks, where a
// revocation has to be written all the same.
func lockless(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ENOLCK) || errors.Is(err, syscall.EINVAL)
}

// lockPatience is how long other programs may hold the lock: each needs a moment. Whoever can read
// the directory can hold it for ever, and must not hold up a revocation by that.
const lockPatience = 10 * time.Second

// Lock keeps other programs of ours from changing a file of the directory until unlock
// is called. The lock ends with the process too, however that ends.
func Lock(dir string) (unlock func(), err error) { return lockWithin(lockPatience, dir) }

func lockWithin(patience time.Duration, dir string) (unlock func(), err error) {
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
