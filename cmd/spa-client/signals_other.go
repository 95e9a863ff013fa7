//go:build !unix

package main

import (
	"os"
	"os/signal"
)

// caught keeps Ctrl-C from ending this program: the console sends it to the command as well.
func caught() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	return nil, func() { signal.Stop(c) }
}

// status is a process's exit status.
func status(p *os.ProcessState) int { return p.ExitCode() }
