package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/keys/service"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"spa-client": testMain})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			env.Values[gatewayKey{}] = &current{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"gateway":    gatewayCommand,
			"sent":       sentCommand,
			"exits":      exitsCommand,
			"longer":     longerCommand,
			"mode":       modeCommand,
			"interrupt":  interruptCommand,
			"signalled":  signalledCommand,
			"waits":      waitsCommand,
			"damage":     damageCommand,
			"nowhere":    nowhereCommand,
			"stunserver": stunServerCommand,
			"terminal":   terminalCommand,
			"rotated":    rotatedCommand,
			"holds":      holdsCommand,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// TestWhichPort: no port can be chosen for a service without TCP ports.
func TestWhichPort(t *testing.T) {
	udp, tcp := service.Ports{Proto: service.UDP, Low: 53, High: 53}, service.Ports{Proto: service.TCP, Low: 80, High: 90}
	for want, ports := range map[string][]service.Ports{"spa-client open": {udp},
		"--port PORT": {udp, tcp}, ": --port PORT": nil} {
		if got := whichPort(&client.PortError{Ports: ports}); !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want %q", ports, got, want)
		}
	}
}

// exitsCommand is "exits CODE PROGRAM ARGS...": it runs a program and checks its exit status.
func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	exitsWith(ts, args[1], args[0], ts.Exec(args[1], args[2:]...))
}

// exitsWith checks how a program ended.
func exitsWith(ts *testscript.TestScript, program, want string, err error) {
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != want {
		ts.Fatalf("%s: exit status %d (%v), want %s", program, code, err, want)
	}
}

// longerCommand is "longer CODE PROGRAM ARGS...": it is exits with a short time in place of TIMEOUT, and a longer one
// if the gateway has not answered in that. It is for programs that use up all their time.
func longerCommand(ts *testscript.TestScript, neg bool, args []string) {
	times := longer("200ms")
	for i, timeout := range times {
		err := ts.Exec(args[1], filled(args[2:], timeout)...)
		if err == nil || i == len(times)-1 || !strings.Contains(ts.ReadFile("stderr"), "error: no answer from") {
			exitsWith(ts, args[1], args[0], err)
			return
		}
	}
}

// longer returns growing times, starting with one.
func longer(first string) []string { return []string{first, "2s", "10s", "60s"} }

// filled returns arguments with a time in place of TIMEOUT.
func filled(args []string, timeout string) []string {
	out := slices.Clone(args)
	for i, arg := range out {
		if arg == "TIMEOUT" {
			out[i] = timeout
		}
	}
	return out
}

// modeCommand is "mode FILE OCTAL": it checks a file's permissions.
func modeCommand(ts *testscript.TestScript, neg bool, args []string) {
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := strconv.FormatUint(uint64(fi.Mode().Perm()), 8); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// damageCommand is "damage FILE NEW": it copies a token with one character changed.
func damageCommand(ts *testscript.TestScript, neg bool, args []string) {
	token := []byte(ts.ReadFile(args[0]))
	middle := len(token) / 2
	if token[middle] == 'A' {
		token[middle] = 'B'
	} else {
		token[middle] = 'A'
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), token, 0o600))
}

// nowhereCommand is "nowhere FILE": it fails if the last program's output contains a piece of the file's first line.
func nowhereCommand(ts *testscript.TestScript, neg bool, args []string) {
	token := strings.TrimSpace(ts.ReadFile(args[0]))
	output := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	for i := 4; i+12 <= len(token); i++ {
		if strings.Contains(output, token[i:i+12]) {
			ts.Fatalf("the output shows %q of the token", token[i:i+12])
		}
	}
}

// signalledCommand is "signalled SIGNAL CODE PROGRAM ARGS...": it runs a program, sends it the signal once it has
// printed something, and expects this exit status. The output is in the file said.
func signalledCommand(ts *testscript.TestScript, neg bool, args []string) {
	cmd := exec.Command(args[2], args[3:]...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+ts.Getenv("XDG_CONFIG_HOME"))
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	first := make([]byte, 1<<10)
	n, err := out.Read(first)
	ts.Check(err)
	ts.Check(cmd.Process.Signal(signalNamed(args[0])))
	rest, err := io.ReadAll(out)
	ts.Check(err)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); strconv.Itoa(code) != args[1] {
		ts.Fatalf("exit status %d, want %s", code, args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs("said"), append(first[:n], rest...), 0o600))
}

// waitsCommand is "waits SIGNAL CODE PROGRAM ARGS...": it runs a program that waits for something that does not come,
// sends it the signal, and expects it to exit with this status and no output. A program that ignores the signal is
// killed. If the signal came before it waited, the command retries with a later one.
func waitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	var last string
	for wait := 250 * time.Millisecond; wait < lab.Patience/2; wait *= 2 {
		cmd := exec.Command(args[2], args[3:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+ts.Getenv("XDG_CONFIG_HOME"))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		ts.Check(cmd.Start())
		again := time.AfterFunc(wait, func() { cmd.Process.Signal(signalNamed(args[0])) })
		kill := time.AfterFunc(2*wait, func() { cmd.Process.Kill() })
		cmd.Wait()
		again.Stop()
		kill.Stop()
		if code := cmd.ProcessState.ExitCode(); strconv.Itoa(code) == args[1] && out.Len() == 0 {
			return
		}
		last = fmt.Sprintf("%v; it said %q", cmd.ProcessState, out.String())
	}
	ts.Fatalf("%s, want exit status %s", last, args[1])
}

// interruptCommand is "interrupt SIGNAL CODE PROGRAM ARGS...": it runs a program, sends it the signal once the gateway
// has one of its packets, and expects it to exit with this status and no output. A program that continues until its
// timeout has another status.
func interruptCommand(ts *testscript.TestScript, neg bool, args []string) {
	cmd := exec.Command(args[2], args[3:]...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+ts.Getenv("XDG_CONFIG_HOME"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ts.Check(cmd.Start())
	select {
	case <-gatewayOf(ts).knocked:
	case <-time.After(lab.Patience):
		ts.Fatalf("the gateway got no packet")
	}
	ts.Check(cmd.Process.Signal(signalNamed(args[0])))
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); strconv.Itoa(code) != args[1] || out.Len() != 0 {
		ts.Fatalf("exit status %d, want %s; it said %q", code, args[1], out.String())
	}
}
