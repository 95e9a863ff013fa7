//go:build !unix

package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// caught keeps Ctrl-C from ending this program: the console sends it to the command as well.
func caught() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	return nil, func() { signal.Stop(c) }
}

// status returns a process's exit status.
func status(p *os.ProcessState) int { return p.ExitCode() }

// gone reports whether the other side has closed the connection or pipe. That is no failure: all that it sent has been
// received.
func gone(err error) bool {
	const aborted, reset = syscall.Errno(10053), syscall.Errno(10054) // WSAECONNABORTED, WSAECONNRESET
	const broken, closing = syscall.Errno(109), syscall.Errno(232)    // ERROR_BROKEN_PIPE, ERROR_NO_DATA
	return errors.Is(err, aborted) || errors.Is(err, reset) || errors.Is(err, broken) || errors.Is(err, closing)
}
