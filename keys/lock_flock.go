//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// lockless reports whether an error is that of a file system without locks, where a
// revocation has to be written all the same.
func lockless(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ENOLCK) || errors.Is(err, syscall.EINVAL)
}

// lockDir keeps other programs of ours from changing a file of the directory until unlock
// is called. The lock ends with the process too, however that ends.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	err = syscall.EINTR
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
	}
	if err != nil && !lockless(err) {
		d.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}
