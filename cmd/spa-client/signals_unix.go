//go:build unix

package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/cmd/internal/cli"
)

// caught receives the signals for a command that runs in this program's place. If both are in the terminal's
// foreground, the terminal sends its signals (Ctrl-C, Ctrl-\) to the command as well: they must not end this program,
// and must not be passed on a second time.
func caught() (signals <-chan os.Signal, stop func()) {
	passed := cli.Heeded(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	typed := cli.Heeded(syscall.SIGQUIT, syscall.SIGINT)
	c := make(chan os.Signal, 16)
	ignored := make(chan os.Signal, 1)
	if foreground() {
		signal.Notify(ignored, typed...)
	} else {
		passed = append(passed, typed...)
	}
	signal.Notify(c, passed...)
	return c, func() {
		signal.Stop(c)
		signal.Stop(ignored)
	}
}

// foreground reports whether this process is in the foreground of its terminal.
func foreground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// status returns a process's exit status as a shell reports it.
func status(p *os.ProcessState) int {
	if s, ok := p.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal())
	}
	return p.ExitCode()
}

// gone reports whether the other side has closed the connection or pipe. That is no failure: all that it sent has been
// received.
func gone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
