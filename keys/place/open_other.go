//go:build !unix

package place

import (
	"os"
	"path/filepath"
)

func openFile(path string) (*os.File, error) { return os.Open(path) }

func (d Folder) openNoFollow(file string) (*os.File, error) {
	path := filepath.Join(d.Path, file)
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &FileError{File: path, Text: "not a regular file"}
	}
	return d.openFlags(file, os.O_RDONLY)
}

func syncDir(string) error { return nil }
