//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd || windows)

package tty

import "golang.org/x/term"

// ReadHidden reads a line from a terminal without echo.
func ReadHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }

// DropTyped does nothing: these systems have no common way to discard a terminal's unread input.
func DropTyped(int) {}
