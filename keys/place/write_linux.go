package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// placeUnnamed writes a file that has no name until it is complete: a process that is killed before that leaves
// nothing. It returns errNamed if the file system has no such files (open(2), O_TMPFILE), or /proc is missing.
func placeUnnamed(path string, data []byte, how Placing, whom Audience) error {
	dir := filepath.Dir(path)
	f, err := openUnnamed(dir, os.O_WRONLY)
	if err != nil {
		return errNamed
	}
	defer f.Close()
	if err := fill(f, data, path, whom); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if how == OnlyNew {
		err := name(f, path)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s %w", path, ErrExists)
		}
		return err
	}
	// No call gives it a name that is taken. Killed before the second, it stays until the next sweep.
	tmp := beside(path)
	if err := name(f, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("writing %w", err), os.Remove(tmp))
	}
	return nil
}

// openUnnamed opens a new file that has no name.
func openUnnamed(dir string, flags int) (*os.File, error) {
	return os.OpenFile(dir, flags|unix.O_TMPFILE, 0o600)
}

// name gives an open file its first name.
func name(f *os.File, path string) error {
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return errNamed
}
