package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Scratch returns a file for data that does not fit into memory. It lies in the directory of path, whose lock the
// caller holds, and has no name if the system allows that. remove closes and removes it. A file that a killed program
// left is removed by the next Scratch for the same path.
func Scratch(path string) (f *os.File, remove func() error, err error) {
	dir, base := filepath.Split(path)
	if _, err := sweep(filepath.Clean(dir), func(file string) bool { return file == base }); err != nil {
		return nil, nil, err
	}
	if f, err := openUnnamed(filepath.Clean(dir), os.O_RDWR); err == nil {
		return f, f.Close, nil
	}
	f, err = os.OpenFile(beside(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("making a file: %w", err)
	}
	return f, func() error { return errors.Join(f.Close(), os.Remove(f.Name())) }, nil
}
