package main

import (
	"golang.org/x/sys/windows"
	"golang.org/x/term"
)

// readHidden reads a line from a terminal that does not show it.
func readHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }

// dropTyped throws away what a terminal has and nobody has read.
func dropTyped(fd int) { _ = windows.FlushConsoleInputBuffer(windows.Handle(fd)) }
