//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package tty

import (
	"bytes"
	"io"

	"golang.org/x/sys/unix"
)

// ReadHidden reads a line from a terminal without echo. Ctrl-D at its beginning returns io.EOF; term.ReadPassword would
// keep waiting. The caller restores the terminal.
func ReadHidden(fd int) ([]byte, error) {
	hidden, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, setTermios, hidden); err != nil {
		return nil, err
	}
	line := make([]byte, MaxLine+1) // a terminal returns one line at a time
	for {
		n, err := unix.Read(fd, line)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			return nil, err
		}
		return bytes.TrimSuffix(line[:n], []byte("\n")), nil
	}
}

// DropTyped discards the terminal's unread input.
func DropTyped(fd int) {
	if state, err := unix.IoctlGetTermios(fd, getTermios); err == nil {
		_ = unix.IoctlSetTermios(fd, dropTermios, state) // the same state, but unread input is lost
	}
}
