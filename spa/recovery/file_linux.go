package recovery

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// seal identifies a file: a copy of it, even one with its name and times, has another inode or was made at another
// moment, and on another machine it is another file.
func seal(f *os.File, machine []byte) (id [8]byte, err error) {
	var at unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &at); err != nil {
		return id, fmt.Errorf("querying %s: %w", f.Name(), err)
	}
	b := binary.BigEndian.AppendUint64([]byte("sallyport uses\x00"), at.Ino)
	b = binary.BigEndian.AppendUint64(b, uint64(at.Btime.Sec))
	b = binary.BigEndian.AppendUint32(b, at.Btime.Nsec)
	sum := sha256.Sum256(append(b, machine...))
	return [8]byte(sum[:8]), nil
}

// machineID names this installation; small containers have none.
func machineID() ([]byte, error) {
	id, err := os.ReadFile("/etc/machine-id")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return id, err
}

// plain are the flags with which the file is opened: the server's user may own the directory, so no link is followed.
const plain = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// openPlain opens an existing file.
func openPlain(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|plain, 0)
	if err != nil {
		return nil, err
	}
	return checked(f)
}

// checked closes a file that may be another user's.
func checked(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink > 1) {
		err = fmt.Errorf("%s is not a regular file of its own: move it away", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// OpenIn opens the existing file of this name in a directory that was opened earlier.
func OpenIn(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDWR|plain, 0)
	if err != nil {
		return nil, err
	}
	return checked(f)
}

// create makes the file with its header.
func create(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|plain, 0o600)
	if err != nil {
		return nil, err
	}
	if err := giveTo(f); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return begin(f)
}

// begin writes the header of an empty file.
func begin(f *os.File) (*os.File, error) {
	_, err := f.WriteAt(header(), 0)
	if err = errors.Join(err, f.Sync(), syncDir(filepath.Dir(f.Name()))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// giveTo gives a new file to the server's user.
func giveTo(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir := filepath.Dir(f.Name())
	info, err := os.Lstat(filepath.Join(dir, journal))
	if err != nil {
		info, err = os.Stat(dir)
	}
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

// journal is the file that is the server's for certain.
const journal = "journal"

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncData makes what was overwritten durable.
func syncData(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
