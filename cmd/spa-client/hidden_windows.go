package main

import (
	"golang.org/x/sys/windows"
	"golang.org/x/term"
)

// readHidden reads a line from a terminal without echo.
func readHidden(fd int) ([]byte, error) { return term.ReadPassword(fd) }

// dropTyped discards the terminal's unread input.
func dropTyped(fd int) { _ = windows.FlushConsoleInputBuffer(windows.Handle(fd)) }
