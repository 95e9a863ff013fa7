package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine returns a sentence with what the figures depend on.
func (b *bench) machine() string {
	var uts unix.Utsname
	kernel := "unknown"
	if unix.Uname(&uts) == nil {
		kernel = unix.ByteSliceToString(uts.Release[:])
	}
	text := fmt.Sprintf("%s: %s, %d cores, Linux %s, %s.", time.Now().Format(time.DateOnly), processor(),
		runtime.NumCPU(), kernel, runtime.Version())
	if b.peers {
		text += " " + strings.Join([]string{version("fwknopd", "--version"), version("knockd", "-V")}, ", ") + "."
	}
	return text
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// version returns the first line that a program prints as its version.
func version(program, flag string) string {
	out, _ := exec.Command(program, flag).CombinedOutput() // knockd exits with 1
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first
}
