// Package place reads and writes files that hold secrets: who may read them, and how they get to their place.
//
// A file is written whole under another name and moved into place, never over an existing one without being
// asked. A file that others could have read is refused, with the command that mends it. Programs that change
// files in one directory take turns.
package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrExists means that the file exists and was not to be replaced.
var ErrExists = errors.New("already exists")

// ErrHeld means that another program holds the lock of a directory.
var ErrHeld = errors.New("another program is changing files there")

// Placing says whether a write may create a file, replace one, or both.
type Placing int

const (
	OnlyNew   Placing = iota // never over an existing file
	OnlyOver                 // only over an existing file
	EitherWay                // a new file, or over an existing one
)

// Audience is who may read a new file, besides root.
type Audience int

const (
	ForOwner   Audience = iota // the directory's owner alone, 0600
	ForService                 // a secret for root, and for the directory's group if that is not root's
	ForReaders                 // no secret: the same, but 0640 in any case
	AsBefore                   // whoever may read the file that it replaces
	ForAll                     // no secret: everyone on the machine, 0644
)

// WriteNew writes a file without secrets to path, 0640, whole or not at all. It never
// writes over an existing file (ErrExists). Run by root, the file belongs to root and the
// directory's group, or, where that group is root's too, to the directory's owner.
func WriteNew(path string, data []byte) error { return Write(path, data, OnlyNew, ForReaders) }

// Write writes data to path, whole or not at all. It holds the directory's lock while it does.
func Write(path string, data []byte, how Placing, whom Audience) error {
	unlock, err := Lock(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer unlock()
	return WriteLocked(path, data, how, whom)
}

// WriteLocked is Write for a caller that holds the directory's lock.
func WriteLocked(path string, data []byte, how Placing, whom Audience) error {
	if how != OnlyNew {
		if err := replaceable(path, how); err != nil {
			return err
		}
		if _, err := sweep(filepath.Dir(path), func(file string) bool { return file == filepath.Base(path) }); err != nil {
			return err
		}
	}
	err := placeUnnamed(path, data, how, whom)
	if errors.Is(err, errNamed) {
		err = placeNamed(path, data, how, whom)
	}
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("syncing the directory of %s: %w", path, err)
	}
	return nil
}

// errNamed means that a file cannot be created without a name here.
var errNamed = errors.New("a file name is needed")

// placeNamed writes and syncs a file beside path, and then moves it. A process that is killed in between leaves that
// file: see Sweep.
func placeNamed(path string, data []byte, how Placing, whom Audience) error {
	tmp, err := writeBeside(path, data, whom)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := move(tmp, path, how); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

// replaceable returns an error unless path is a regular file or, except for OnlyOver, missing.
func replaceable(path string, how Placing) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && how == EitherWay {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing %w", err)
	}
	if !fi.Mode().IsRegular() {
		return &FileError{File: path, Text: "not a regular file: it is not replaced"}
	}
	return nil
}

// writeBeside writes a file in path's directory under a name that no reader looks for.
func writeBeside(path string, data []byte, whom Audience) (string, error) {
	tmp := beside(path)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = fill(f, data, path, whom)
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(tmp)
		return "", err
	}
	return tmp, nil
}

// fill writes a file that will be at path.
func fill(f *os.File, data []byte, path string, whom Audience) error {
	if err := give(f, path, whom); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func move(tmp, path string, how Placing) error {
	if how == OnlyNew {
		return moveNew(tmp, path)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing %w", err)
	}
	return nil
}

// moveNew never overwrites path, not even a file that has just come there: a link fails if its name exists.
func moveNew(tmp, path string) error {
	err := os.Link(tmp, path)
	if err == nil {
		return os.Remove(tmp)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w", path, ErrExists)
	}
	return moveUnlinked(tmp, path)
}

// moveUnlinked is moveNew for file systems without links: an empty file, created exclusively, reserves the name. A
// crash in between leaves it empty, and every reader refuses that.
func moveUnlinked(tmp, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s %w", path, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("writing %w", err)
	}
	f.Close()
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(path)
		return fmt.Errorf("writing %w", err)
	}
	return nil
}
