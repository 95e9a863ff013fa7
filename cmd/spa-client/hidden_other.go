//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd || windows)

package main

import "golang.org/x/term"

// readHidden reads a line from a terminal that does not show it.
func readHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }

// dropTyped would throw away what a terminal has and nobody has read. There is no way that is
// the same on all these systems.
func dropTyped(int) {}
