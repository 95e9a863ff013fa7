package lab

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal.
type Terminal struct {
	User    *os.File // where keys are typed, and the screen is read
	Program *os.File // a program's standard streams
}

// NewTerminal opens a pseudo-terminal.
func NewTerminal() (*Terminal, error) {
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var n int
	if err = unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		n, err = unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	}
	if err != nil {
		return nil, errors.Join(err, user.Close())
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, errors.Join(err, user.Close())
	}
	return &Terminal{User: user, Program: program}, nil
}

// Resize changes the number of columns and rows, and signals that to the program.
func (t *Terminal) Resize(columns, rows uint16) error {
	return unix.IoctlSetWinsize(int(t.User.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
}

// Settings returns the terminal's settings, which a program must restore.
func (t *Terminal) Settings() (unix.Termios, error) {
	s, err := unix.IoctlGetTermios(int(t.Program.Fd()), unix.TCGETS)
	if err != nil {
		return unix.Termios{}, err
	}
	return *s, nil
}

// Close closes both ends.
func (t *Terminal) Close() { t.User.Close(); t.Program.Close() }
