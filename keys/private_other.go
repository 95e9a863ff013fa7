//go:build !unix

package keys

import (
	"io/fs"
	"os"
	"path/filepath"
)

// Windows has no modes: a file has the access list of its directory, and the directory
// of a user's settings is the user's own.
func checkAccess(folder, string, fs.FileInfo, fs.FileMode) error { return nil }

func openFile(path string) (*os.File, error) { return os.Open(path) }

func (d folder) openNoFollow(file string) (*os.File, error) {
	path := filepath.Join(d.path, file)
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &FileError{File: path, Text: "not a regular file"}
	}
	return d.openFlags(file, os.O_RDONLY)
}

func give(*os.File, string, audience) error { return nil }

func syncDir(string) error { return nil }
