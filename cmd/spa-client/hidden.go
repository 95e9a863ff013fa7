//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package main

import (
	"bytes"
	"io"

	"golang.org/x/sys/unix"
)

// readHidden reads a line from a terminal that does not show it. Ctrl-D at its beginning is
// io.EOF, which term.ReadPassword goes on waiting after. Whoever calls it puts the terminal back.
func readHidden(fd int) ([]byte, error) {
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
	line := make([]byte, maxLine+1) // a terminal hands over a line at a time
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

// dropTyped throws away what a terminal has and nobody has read.
func dropTyped(fd int) {
	if state, err := unix.IoctlGetTermios(fd, getTermios); err == nil {
		_ = unix.IoctlSetTermios(fd, dropTermios, state) // as it is; what was typed is lost
	}
}
