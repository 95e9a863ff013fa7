// Package statefile opens and locks files in the state directory, which an ordinary user may own while root opens
// them.
package statefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sallyport/spa/sandbox"

	"golang.org/x/sys/unix"
)

// openPlain follows no links and does not wait for a process that holds a lease on the file.
const openPlain = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// Open opens a file in the state directory; with create it makes a missing one. An ordinary user may own the
// directory while root opens the file: only a file made just now is given to that user, and only a regular file
// without other names is written to.
func Open(path string, create bool) (*os.File, error) {
	f, err := os.OpenFile(path, openPlain, 0)
	fresh := create && errors.Is(err, fs.ErrNotExist)
	if fresh {
		f, err = os.OpenFile(path, openPlain|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return nil, err
	}
	err = checkPlain(f)
	if err == nil && fresh {
		err = keepOwner(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f, nil
}

// checkPlain refuses anything but a regular file, and hard links: the file could be another user's.
func checkPlain(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if n := info.Sys().(*syscall.Stat_t).Nlink; n > 1 {
		return errors.New("the file has other names (hard links), so it may be another user's; remove this one")
	}
	return nil
}

// keepOwner gives a new file to the owner of its directory: a daemon that starts as an ordinary user with
// CAP_NET_ADMIN must be able to open it later. Without CAP_CHOWN the file stays with the user who made it, and who
// can use it.
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

// lockPatience is how long to wait for another process's lock on a file: far longer than a load or a teardown takes.
// Any process of the file's owner can lock it and never unlock it.
const lockPatience = time.Minute

// Alone calls do with the file locked.
func Alone(f *os.File, do func() error) error { return AloneWithin(lockPatience, f, do) }

// AloneWithin is Alone for a caller that waits at most patience for the lock.
func AloneWithin(patience time.Duration, f *os.File, do func() error) error {
	for give := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := Flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return errors.Join(do(), Flock(f, unix.LOCK_UN))
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || !time.Now().Before(give) {
			return fmt.Errorf("locking the ledger (fuser -v %s shows the process that holds it): %w", f.Name(), err)
		}
	}
}

// Flock is flock(2), retried after signals.
func Flock(f *os.File, how int) error {
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

// AsOwner calls open with this process's rights and, if these do not suffice, with those of user: under systemd, root
// may lack the right to open other users' files. With an empty user it calls open only once.
func AsOwner(user string, open func() error) error {
	if user == "" {
		return open()
	}
	return sandbox.OrAs(user, open)
}
