package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Reopen continues in a new file at the log's path, if log rotation has moved the old one. On an error, such as a
// directory in which this user cannot create files, the log stays in the old file.
func (l *Log) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, ok := l.out.w.(*os.File)
	if !ok {
		return nil // no lines are recorded
	}
	if same, err := l.isNamed(old); same || err != nil {
		return err
	}
	file, err := l.openNamed()
	if err != nil {
		return fmt.Errorf("reopening the log: %w", err)
	}
	l.out.w, l.out.torn = file, endsTorn(l.path)
	return old.Close()
}

// openNamed opens or creates the file that is at the log's path now.
func (l *Log) openNamed() (*os.File, error) {
	name := filepath.Base(l.path)
	if info, err := l.dir.Lstat(name); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil, fmt.Errorf("%s is a symbolic link", l.path) // which a root follows, whatever the flags
	}
	return openFile(name, l.dir.OpenFile)
}

// Named returns an error if the log's file is no longer at its path: it was moved, and no writable file has replaced
// it.
func (l *Log) Named() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	file, ok := l.out.w.(*os.File)
	if !ok {
		return nil // no lines are recorded
	}
	same, err := l.isNamed(file)
	if err == nil && !same {
		err = fmt.Errorf("the log continues in the file that was moved away from %s", l.path)
	}
	return err
}

// Give gives a file of root's to the user, so that a file that log rotation creates after its example can be opened
// by that user too. It does so only if root alone can have put it there.
func (l *Log) Give(uid int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	file, ok := l.out.w.(*os.File)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	dir, err := os.Lstat(filepath.Dir(l.path))
	if err != nil || dir.Mode().Perm()&0o022 != 0 || !ofRoot(dir) {
		return nil
	}
	if info, err := file.Stat(); err != nil || !ofRoot(info) {
		return nil
	}
	return file.Chown(uid, -1)
}

// ErrDirectory means that the log's directory is no longer the one that it was opened in: this process may have no
// rights in another.
var ErrDirectory = errors.New("the log's directory is no longer the one that was opened")

// isNamed reports whether the file is still at the log's path.
func (l *Log) isNamed(file *os.File) (bool, error) {
	have, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("checking the log: %w", err)
	}
	here, err := l.dir.Stat(".")
	if there, notSeen := os.Stat(filepath.Dir(l.path)); err == nil && !errors.Is(notSeen, fs.ErrPermission) &&
		!os.SameFile(here, there) {
		return false, fmt.Errorf("%s: %w", filepath.Dir(l.path), ErrDirectory)
	}
	named, err := l.dir.Lstat(filepath.Base(l.path))
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("checking the log: %w", err)
	}
	return os.SameFile(have, named), nil
}
