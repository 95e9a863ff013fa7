package main

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// terminal is a pseudo-terminal and a program's output on it.
type terminal struct {
	*lab.Terminal
	screen bytes.Buffer
}

// watch reads the output to its end. Each time that wait appears on the screen it types keys.
func (t *terminal) watch(wait, keys string) {
	buf := make([]byte, 4096)
	typed := 0
	for {
		n, err := t.User.Read(buf)
		t.screen.Write(buf[:n])
		if err != nil { // EIO: the program's end is closed
			return
		}
		if wait != "" && strings.Count(t.screen.String(), wait) > typed {
			typed++
			t.User.WriteString(keys)
		}
	}
}

// terminalCommand is "terminal WAIT KEYS CODE PROGRAM ARGS...": it runs a program at a terminal, types the keys (^C)
// each time that the text appears on the screen, and expects the exit status. The screen is in the file screen. The
// terminal must be restored. TIMEOUT among the arguments is a short time, and a longer one if the text does not appear
// in that.
func terminalCommand(ts *testscript.TestScript, neg bool, args []string) {
	times := longer("700ms")
	if !slices.Contains(args, "TIMEOUT") {
		times = times[:1]
	}
	for i, timeout := range times {
		screen, code := atTerminal(ts, args[0], args[1], filled(args[3:], timeout))
		if i < len(times)-1 && !strings.Contains(screen, args[0]) {
			continue
		}
		ts.Check(os.WriteFile(ts.MkAbs("screen"), []byte(screen), 0o600))
		if strconv.Itoa(code) != args[2] {
			ts.Fatalf("exit status %d, want %s; the screen shows %q", code, args[2], screen)
		}
		return
	}
}

// atTerminal runs a command at its own terminal, and returns the screen and the exit status.
func atTerminal(ts *testscript.TestScript, wait, keys string, args []string) (screen string, code int) {
	pty, err := lab.NewTerminal()
	ts.Check(err)
	t := &terminal{Terminal: pty}
	defer t.User.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+ts.Getenv("XDG_CONFIG_HOME"), "TERM=xterm",
		"NO_COLOR="+ts.Getenv("NO_COLOR"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = t.Program, t.Program, t.Program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	before, err := unix.IoctlGetTermios(int(t.Program.Fd()), unix.TCGETS)
	ts.Check(err)
	// Otherwise ^C makes the kernel discard unread output of the program.
	before.Lflag |= unix.NOFLSH
	ts.Check(unix.IoctlSetTermios(int(t.Program.Fd()), unix.TCSETS, before))
	ts.Check(cmd.Start())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(wait, strings.ReplaceAll(keys, "^C", "\x03"))
	}()
	kill := time.AfterFunc(2*lab.Patience, func() { cmd.Process.Kill() })
	cmd.Wait()
	kill.Stop()
	after, err := unix.IoctlGetTermios(int(t.Program.Fd()), unix.TCGETS)
	ts.Check(err)
	t.Program.Close()
	<-watched
	if *before != *after {
		ts.Fatalf("the terminal was left in another state")
	}
	return t.screen.String(), cmd.ProcessState.ExitCode()
}
