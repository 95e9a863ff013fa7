package cli

import (
	"errors"
	"io/fs"
	"os"
)

// Unread adds to an error of reading a gateway's files what to do, for a program: where there are none,
// and where they are not for who asks. Any other it returns as it is.
func Unread(err error, program string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return Fail(err, "spa-server init makes a gateway's files; if they are in another directory: --config DIR")
	}
	return AsRoot(err, program)
}

// AsRoot adds what to do where an error is of rights. Any other it returns as it is.
func AsRoot(err error, program string) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return Fail(err, "run it as root: sudo "+program+" …")
	}
	return err
}
