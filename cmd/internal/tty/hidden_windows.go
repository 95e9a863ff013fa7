package tty

import (
	"golang.org/x/sys/windows"
	"golang.org/x/term"
)

// ReadHidden reads a line from a terminal without echo.
func ReadHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }

// DropTyped discards the terminal's unread input.
func DropTyped(fd int) { _ = windows.FlushConsoleInputBuffer(windows.Handle(fd)) }
