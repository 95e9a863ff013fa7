package audit

import (
	"fmt"
	"os"
)

// Reopen goes on in a new file of the log's name, where whoever rotates logs has moved the one that
// was written to. On an error, such as a directory in which this user may make no file, the log goes
// on in the file that it has.
func (l *Log) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, ok := l.out.w.(*os.File)
	if !ok {
		return nil // no lines are recorded
	}
	if same, err := isNamed(old, l.path); same || err != nil {
		return err
	}
	file, err := openFile(l.path)
	if err != nil {
		return fmt.Errorf("audit: opening the log anew: %w", err)
	}
	l.out.w, l.out.torn = file, endsTorn(l.path)
	return old.Close()
}

// isNamed reports whether the file is still what the path names.
func isNamed(file *os.File, path string) (bool, error) {
	have, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("audit: looking at the log: %w", err)
	}
	named, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("audit: looking at the log: %w", err)
	}
	return os.SameFile(have, named), nil
}
