package cli

import (
	"errors"
	"io/fs"
	"os"
)

// Unread adds a hint to an error from reading a gateway's files, if they are missing or may not be read. It returns any
// other error unchanged.
func Unread(err error, program string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return Fail(err, "spa-server init makes a gateway's files; if they are in another directory: --config DIR")
	}
	return AsRoot(err, program)
}

// AsRoot adds the hint to become root to a permission error. It returns any other error unchanged.
func AsRoot(err error, program string) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return Fail(err, "run it as root: sudo "+program+" …")
	}
	return err
}
