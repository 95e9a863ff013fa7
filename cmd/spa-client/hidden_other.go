//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd || windows)

package main

import "golang.org/x/term"

// readHidden reads a line from a terminal without echo.
func readHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }

// dropTyped does nothing: these systems have no common way to discard a terminal's unread input.
func dropTyped(int) {}
