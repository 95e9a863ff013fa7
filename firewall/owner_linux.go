package firewall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// openPlain follows no link, and does not wait for who holds a lease on the file.
const openPlain = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// keepOwner gives a file that was made just now to the owner of its directory: a daemon
// that starts as an ordinary user with CAP_NET_ADMIN must be able to open it later. Without
// CAP_CHOWN it stays with who made it, who can use it.
func keepOwner(f *os.File) error {
	dir, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	owner := dir.Sys().(*syscall.Stat_t)
	if err := f.Chown(int(owner.Uid), int(owner.Gid)); !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// alone calls do with the file locked.
func alone(f *os.File, do func() error) error {
	if err := flock(f, unix.LOCK_EX); err != nil {
		return fmt.Errorf("firewall: locking the ledger: %w", err)
	}
	return errors.Join(do(), flock(f, unix.LOCK_UN))
}

func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno error
	err = raw.Control(func(fd uintptr) {
		for {
			if errno = unix.Flock(int(fd), how); errno != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, errno)
}
