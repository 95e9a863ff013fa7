package place

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A FileError describes what is wrong with a file, and where. Its text begins with the file's path and never quotes a
// value, which may be a secret.
type FileError struct {
	File       string
	Line       int    // from 1; 0 where there is no line to name
	Key        string // dotted: "limits.grants"; or empty
	Text       string // what is wrong
	Suggestion string // the key that was probably meant; or empty
}

// Error returns "FILE:LINE: KEY: what is wrong".
func (e *FileError) Error() string {
	var b strings.Builder
	b.WriteString(e.Place())
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Text)
	if e.Suggestion != "" {
		fmt.Fprintf(&b, " (did you mean %q?)", e.Suggestion)
	}
	return b.String()
}

// Place returns "FILE:LINE", or the file if there is no line.
func (e *FileError) Place() string {
	if e.Line == 0 {
		return e.File
	}
	return fmt.Sprintf("%s:%d", e.File, e.Line)
}

// A Check returns an error for a file in d to which others have access.
type Check func(d Folder, path string, fi fs.FileInfo) error

// A Folder is a directory of files with secrets. With Root they are opened through it, whatever the directories above
// allow by then, and Path is only its name.
type Folder struct {
	Path  string
	Root  *os.Root
	owner string // user:group by name, as far as it was looked up
}

// FolderOf returns the directory of the file at path, without a Root.
func FolderOf(path string) Folder { return Folder{Path: filepath.Dir(path)} }

func (d Folder) stat() (fs.FileInfo, error) {
	if d.Root != nil {
		return d.Root.Stat(".")
	}
	return os.Stat(d.Path)
}

// openFlags is os.OpenFile in the folder. Its error names the whole path.
func (d Folder) openFlags(file string, flags int) (*os.File, error) {
	path := filepath.Join(d.Path, file)
	if d.Root == nil {
		return os.OpenFile(path, flags, 0)
	}
	f, err := d.Root.OpenFile(file, flags, 0)
	var at *fs.PathError
	if errors.As(err, &at) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: at.Err}
	}
	return f, err
}

// Read reads a whole file with secrets, of at most limit bytes. It follows no symbolic link, which a later write would
// replace, and calls check, unless that is nil, before it reads a byte.
func (d Folder) Read(file string, limit int64, check Check) ([]byte, error) {
	path := filepath.Join(d.Path, file)
	f, err := d.openNoFollow(file)
	if err != nil {
		return nil, readError(d.denied(path, err))
	}
	defer f.Close()
	return readRegular(f, path, limit, func(fi fs.FileInfo) error {
		if check == nil {
			return nil
		}
		return check(d, path, fi)
	})
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, readError(err)
	}
	defer f.Close()
	return readRegular(f, path, limit, func(fs.FileInfo) error { return nil })
}

// readRegular reads a whole file, but refuses one that would block or never end.
func readRegular(f *os.File, path string, limit int64, check func(fs.FileInfo) error) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, readError(err)
	}
	if !fi.Mode().IsRegular() {
		return nil, &FileError{File: path, Text: "not a regular file"}
	}
	if err := check(fi); err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, &FileError{File: path, Text: fmt.Sprintf("larger than %d bytes", limit)}
	}
	data := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, nil
}

// readError names the file that could not be read, and not the system call.
func readError(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("reading %s: %w", at.Path, at.Err)
	}
	if errors.Is(err, ErrUnreadable) {
		return err
	}
	return fmt.Errorf("reading %w", err)
}

// InPlace returns an error if the directory that was opened at a path is no longer there: a reader would go on to read
// the directory that was moved away. If this user may not look it returns nil.
func InPlace(root *os.Root, path string) error {
	have, err := root.Stat(".")
	if err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	named, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil
	case err != nil:
		return fmt.Errorf("checking that the directory is the one that was opened: %w", err)
	case !os.SameFile(have, named):
		return fmt.Errorf("%s is no longer the directory that was opened: that one was moved away", path)
	}
	return nil
}
