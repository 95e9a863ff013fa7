package replay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// osFile is a journal's file.
type osFile struct{ *os.File }

var _ disk = osFile{}

// openFile opens an existing journal. The directory may belong to the daemon's user, so neither
// a link is followed nor anything else than a plain file taken for a journal.
func openFile(path string) (osFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return osFile{}, fmt.Errorf("opening the journal: %w", err)
	}
	if err := checkFile(f); err != nil {
		f.Close()
		return osFile{}, err
	}
	return osFile{f}, nil
}

func checkFile(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("checking the journal: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("journal %q is not a regular file", f.Name())
	}
	if n := fi.Sys().(*syscall.Stat_t).Nlink; n > 1 {
		return fmt.Errorf("journal %q has other names (hard links), so it may be someone else's file: remove this "+
			"name", f.Name())
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others can write journal %q: chmod 600 %q", f.Name(), f.Name())
	}
	return nil
}

// createFile makes a new file, never over another, that belongs to whom its directory belongs to.
func createFile(path string) (osFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return osFile{}, fmt.Errorf("creating the journal: %w", err)
	}
	if err := inheritOwner(f); err != nil {
		f.Close()
		os.Remove(path)
		return osFile{}, fmt.Errorf("giving the journal to its directory's owner: %w", err)
	}
	return osFile{f}, nil
}

func inheritOwner(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	fi, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	return f.Chown(int(st.Uid), int(st.Gid))
}

// syncDir makes the name of a new file durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Grow reserves the space between, so that no later write into it meets a full disk.
func (f osFile) Grow(from, size int64) error {
	err := retry(func() error { return unix.Fallocate(int(f.Fd()), 0, from, size-from) })
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	old, err := f.Size()
	if err != nil {
		return err
	}
	return writeZeros(f, old, size)
}

// writeZeros is for file systems that cannot reserve.
func writeZeros(w io.WriterAt, from, size int64) error {
	zero := make([]byte, page)
	for ; from < size; from += page {
		if _, err := w.WriteAt(zero[:min(page, size-from)], from); err != nil {
			return err
		}
	}
	return nil
}

func (f osFile) Sync() error {
	return retry(func() error { return unix.Fdatasync(int(f.Fd())) })
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// bootID names this boot of the kernel (Documentation/admin-guide/sysctl/kernel.rst).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// machineID names this installation (machine-id(5)). Small containers have none: a boot id never
// repeats on another machine, so nothing but the reason told depends on it.
func machineID() (string, error) {
	b, err := os.ReadFile("/etc/machine-id")
	if errors.Is(err, os.ErrNotExist) {
		return "none", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the machine id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
