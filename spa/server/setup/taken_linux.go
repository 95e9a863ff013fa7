package setup

import (
	"errors"
	"io/fs"
	"os"
	"time"
)

// takenMode lets any program carry the file to the office: it has no secret.
const takenMode fs.FileMode = 0o644

// OpenTaken opens the file that reports which bundle is in force, or makes it. It is empty then. The server writes into
// it and cannot put another in its place once its privileges are dropped, so that a reader may find half a line: its
// signature shows that.
func OpenTaken(path string) (*os.File, error) {
	file, err := openLockFile(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Mode().Perm() != takenMode {
		err = file.Chmod(takenMode)
	}
	if err = errors.Join(err, file.Truncate(0)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Since returns when a bundle was taken over: before, if it is the one that was kept.
func (b *Bundles) Since(other *Bundle, now time.Time) time.Time {
	if b.IsKept(other) && b.at.Before(now) {
		return b.at
	}
	return now
}
