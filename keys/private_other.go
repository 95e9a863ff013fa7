//go:build !unix

package keys

import (
	"io/fs"
	"os"
)

// Windows has no modes: a file has the access list of its directory, and the directory
// of a user's settings is the user's own.
func checkAccess(string, fs.FileInfo, fs.FileMode) error { return nil }

func openFile(path string) (*os.File, error) { return os.Open(path) }

func openNoFollow(path string) (*os.File, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &FileError{File: path, Text: "not a regular file"}
	}
	return os.Open(path)
}

func give(*os.File, string, audience) error { return nil }

func syncDir(string) error { return nil }
