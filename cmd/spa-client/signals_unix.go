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

// caught takes the signals that are meant for a command that runs in this program's place.
// What the terminal sends (Ctrl-C, Ctrl-\) it sends to the command itself too, as long as both are
// in its foreground: that is kept from ending this program, and is not to come twice.
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

// foreground reports whether this process is what its terminal talks to.
func foreground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// status is a process's exit status as a shell tells it.
func status(p *os.ProcessState) int {
	if s, ok := p.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal())
	}
	return p.ExitCode()
}

// gone reports whether the other side has closed the connection or pipe, which is its right:
// what it had to say has been received.
func gone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
