package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys"
	"sallyport/spa/lab"
)

// asked is a prompt on a terminal that already hides its input, and its outcome.
type asked struct {
	terminal, other *os.File
	done            chan error
	answer          []byte // once done
}

func startAsking(t *testing.T, ask func(ctx context.Context, in *os.File, out *prompted) ([]byte, error)) *asked {
	t.Helper()
	a := &asked{done: make(chan error, 1)}
	a.terminal, a.other = pseudoTerminal(t)
	out := &prompted{new(strings.Builder), make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	t.Cleanup(cancel)
	go func() {
		var err error
		a.answer, err = ask(ctx, a.terminal, out)
		a.done <- err
	}()
	<-out.asked
	for echoes(t, a.terminal) {
	}
	return a
}

// unread returns how much unread input a terminal has.
func (a *asked) unread(t *testing.T) int {
	t.Helper()
	n := lab.Value(unix.IoctlGetInt(int(a.terminal.Fd()), unix.TIOCINQ))(t)
	return n
}

// TestPasteLeavesNoKey: a token pasted with line breaks leaves nothing for the shell, which would run it and save it in
// its history. Text typed after a token is left alone.
func TestPasteLeavesNoKey(t *testing.T) {
	p := keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201},
		ServerID: keys.NewServerID(), Gate: keys.NewGateKey(),
		Client: "alice", ID: keys.NewID(), Key: keys.NewKey(), Receipts: true}
	token := p.Token()
	for name, c := range map[string]struct {
		typed, answer string
		left          int
	}{
		"broken": {token[:80] + "\n" + token[80:160] + "\n" + token[160:] + "\n", token[:80], 0},
		"whole":  {token + "\nls\n", token, len("ls\n")},
	} {
		t.Run(name, func(t *testing.T) {
			a := startAsking(t, func(ctx context.Context, in *os.File, out *prompted) ([]byte, error) {
				return pasteToken(ctx, in, out, "paste: ")
			})
			fmt.Fprint(a.other, c.typed)
			if err := <-a.done; err != nil || string(a.answer) != c.answer {
				t.Errorf("read %d characters, %v; want %d", len(a.answer), err, len(c.answer))
			}
			// The kernel passes input on line by line: the last one may come a moment later.
			lab.Eventually(t, "what was typed after it", func() bool { return a.unread(t) >= c.left })
			if n := a.unread(t); n != c.left {
				t.Errorf("%d characters are left for what reads next, want %d", n, c.left)
			}
			if !echoes(t, a.terminal) {
				t.Error("the terminal still hides input")
			}
		})
	}
}

// TestAskQuit: Ctrl-\ ends the program, and so does ssh after its timeout for the ProxyCommand: the terminal echoes
// again.
func TestAskQuit(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGQUIT: 131, syscall.SIGHUP: 129} {
		t.Run(sig.String(), func(t *testing.T) {
			heard := make(chan os.Signal, 1) // counts even if the tests were started to ignore it, as by nohup(1)
			signal.Notify(heard, sig)
			defer signal.Stop(heard)
			a := startAsking(t, func(ctx context.Context, in *os.File, out *prompted) ([]byte, error) {
				return tty.AskOn(ctx, in, out, "passphrase: ")
			})
			lab.Must(t, syscall.Kill(os.Getpid(), sig))
			var exit *cli.Exit
			if err := <-a.done; !errors.As(err, &exit) || exit.Code != want || exit.Err != nil {
				t.Errorf("got %v, want to end with %d and without a word", err, want)
			}
			if !echoes(t, a.terminal) {
				t.Error("the terminal still hides input")
			}
		})
	}
}
