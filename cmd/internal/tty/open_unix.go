//go:build unix

package tty

import "os"

// Open opens the terminal of this process, even if its standard files are redirected.
func Open() (in, out *os.File, err error) {
	in, err = os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	return in, in, nil
}
