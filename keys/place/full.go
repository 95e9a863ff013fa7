package place

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrMeanwhile means that a file no longer has the text that was read: it was edited.
var ErrMeanwhile = errors.New("was changed by another program in the meantime")

// ErrFull means that there is no space to write a file, not even over the old one, which is unchanged.
var ErrFull = errors.New("no space left to write it, not even in place")

// Overwrite replaces an existing file that says before, for a caller that holds the directory's lock. If there is no
// space for a new file it rewrites the old one in place, within the space that it has: a revocation must not wait for
// space. A power cut in the middle of that leaves a bad file, which shuts its client out.
func Overwrite(path string, before, after []byte) error {
	if err := unchanged(path, before); err != nil {
		return err
	}
	err := WriteLocked(path, after, OnlyOver, ForService)
	if err == nil || !isFull(err) {
		return err
	}
	if err := rewrite(path, before, after); err != nil {
		return fmt.Errorf("%s: %w (%w)", path, ErrFull, err)
	}
	return nil
}

// Replace is Overwrite for a file without secrets that people edit: it keeps its owner, group and mode. It needs space
// for a new file.
func Replace(path string, before, after []byte) error {
	if err := unchanged(path, before); err != nil {
		return err
	}
	return WriteLocked(path, after, OnlyOver, AsBefore)
}

// unchanged returns an error unless the file says before. It follows no link.
func unchanged(path string, before []byte) error {
	if err := replaceable(path, OnlyOver); err != nil {
		return err
	}
	now, err := FolderOf(path).Read(filepath.Base(path), int64(len(before)), nil)
	if errors.Is(err, os.ErrPermission) {
		return err
	}
	if err != nil || !bytes.Equal(now, before) {
		return fmt.Errorf("%s %w", path, ErrMeanwhile)
	}
	return nil
}
