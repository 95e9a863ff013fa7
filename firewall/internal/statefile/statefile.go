// package statefile opens and locks files in the state directory, whose owner may be an ordinary user while root opens
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

// openPlain follows no link, and does not wait for who holds a lease on the file.
const openPlain = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// Open opens a file of the state directory, or makes it if there is none. The directory
// may belong to an ordinary user while root opens the file: only what was made just now is
// given to that user, and only a plain file that has no other name is written to.
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

// checkPlain refuses what is no file, and a hard link: it can be another user's file.
func checkPlain(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("this is not a regular file")
	}
	if n := info.Sys().(*syscall.Stat_t).Nlink; n > 1 {
		return errors.New("this file has other names (hard links), so it may be another's; remove this one")
	}
	return nil
}

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

// lockPatience is how long another process may hold the ledger: far longer than a load or a
// teardown takes. Any process of the file's owner can lock it and never let go.
const lockPatience = time.Minute

// Alone calls do with the file locked.
func Alone(f *os.File, do func() error) error { return AloneWithin(lockPatience, f, do) }

// AloneWithin is Alone, for who waits that long for the lock.
func AloneWithin(patience time.Duration, f *os.File, do func() error) error {
	for give := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := Flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return errors.Join(do(), Flock(f, unix.LOCK_UN))
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || !time.Now().Before(give) {
			return fmt.Errorf("locking the ledger (fuser -v %s names who holds it): %w", f.Name(), err)
		}
	}
}

// Flock is flock(2).
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

// AsOwner runs open with this process's rights and, if these do not suffice, with those of user: under systemd root
// may lack the right to open other users' files. Without a user there is only the first.
func AsOwner(user string, open func() error) error {
	if user == "" {
		return open()
	}
	return sandbox.OrAs(user, open)
}
