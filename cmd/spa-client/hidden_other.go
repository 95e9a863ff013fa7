//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package main

import "golang.org/x/term"

// readHidden reads a line from a terminal that does not show it.
func readHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }
