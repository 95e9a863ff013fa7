package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/cmd/internal/tty"
	"sallyport/spa/lab"
)

// pseudoTerminal returns a terminal and its other end.
func pseudoTerminal(t *testing.T) (terminal, other *os.File) {
	t.Helper()
	other = lab.Value(os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0))(t)
	t.Cleanup(func() { other.Close() })
	lab.Must(t, unix.IoctlSetPointerInt(int(other.Fd()), unix.TIOCSPTLCK, 0))
	number := lab.Value(unix.IoctlGetInt(int(other.Fd()), unix.TIOCGPTN))(t)
	terminal = lab.Value(os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0))(t)
	t.Cleanup(func() { terminal.Close() })
	return terminal, other
}

func echoes(t *testing.T, terminal *os.File) bool {
	t.Helper()
	state := lab.Value(unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS))(t)
	return state.Lflag&unix.ECHO != 0
}

// prompted is a writer that signals when a prompt was written.
type prompted struct {
	*strings.Builder
	asked chan struct{}
}

func (p prompted) Write(b []byte) (int, error) {
	if strings.HasSuffix(string(b), ": ") {
		defer close(p.asked)
	}
	return p.Builder.Write(b)
}

// TestAskShowsNothing: what is typed does not appear, and the terminal is restored afterwards.
func TestAskShowsNothing(t *testing.T) {
	for name, answered := range map[string]bool{"answered": true, "interrupted": false} {
		t.Run(name, func(t *testing.T) {
			terminal, other := pseudoTerminal(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := prompted{new(strings.Builder), make(chan struct{})}
			type result struct {
				b   []byte
				err error
			}
			done := make(chan result, 1)
			go func() {
				b, err := tty.AskOn(ctx, terminal, out, "passphrase: ")
				done <- result{b, err}
			}()
			<-out.asked
			for echoes(t, terminal) {
				// The prompt comes first: text typed before it was typed for something else.
			}
			if !answered {
				cancel()
				if r := <-done; r.b != nil || !errors.Is(r.err, context.Canceled) {
					t.Errorf("got %q, %v", r.b, r.err)
				}
			} else {
				fmt.Fprint(other, "secret\n")
				if r := <-done; string(r.b) != "secret" || r.err != nil {
					t.Errorf("got %q, %v", r.b, r.err)
				}
				var shown [100]byte
				fmt.Fprint(terminal, "the end")
				n, _ := other.Read(shown[:])
				if strings.Contains(string(shown[:n])+out.String(), "secret") {
					t.Errorf("the terminal shows %q, it was told %q", shown[:n], out.String())
				}
			}
			if !echoes(t, terminal) {
				t.Error("the terminal still hides input")
			}
		})
	}
}

// TestAskEnds: Ctrl-D is an empty answer.
func TestAskEnds(t *testing.T) {
	terminal, other := pseudoTerminal(t)
	out := prompted{new(strings.Builder), make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := tty.AskOn(ctx, terminal, out, "passphrase: ")
		done <- err
	}()
	<-out.asked
	for echoes(t, terminal) {
	}
	fmt.Fprint(other, "\x04")
	if err := <-done; err == nil || err.Error() != "nothing was typed" {
		t.Errorf("got %v", err)
	}
	if !echoes(t, terminal) {
		t.Error("the terminal still hides input")
	}
}

func TestAskNeedsATerminal(t *testing.T) {
	r, w, err := os.Pipe()
	lab.Must(t, err)
	defer r.Close()
	defer w.Close()
	if b, err := tty.AskOn(t.Context(), r, w, "passphrase: "); b != nil || !errors.Is(err, tty.ErrNone) {
		t.Errorf("got %q, %v", b, err)
	}
}
