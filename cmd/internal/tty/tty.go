// Package tty asks a person for secrets on a terminal, which does not show them.
package tty

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"

	"sallyport/cmd/internal/cli"
)

// ErrNone is returned if there is no one to ask.
var ErrNone = errors.New("there is no terminal to ask on")

// MaxLine is the longest line that a terminal returns.
const MaxLine = 4095

// Ask prompts on the terminal, whatever standard input is, and does not show the answer.
func Ask(ctx context.Context, prompt string) ([]byte, error) {
	in, out, err := Open()
	if err != nil {
		return nil, ErrNone
	}
	defer in.Close()
	defer out.Close()
	return AskOn(ctx, in, out, prompt)
}

// AskOn asks on an open terminal.
func AskOn(ctx context.Context, in *os.File, out io.Writer, prompt string) ([]byte, error) {
	return ReadOn(ctx, in, out, prompt, ReadHidden)
}

// ReadOn reads from an open terminal with a function that hides the input.
func ReadOn(ctx context.Context, in *os.File, out io.Writer, prompt string,
	read func(fd int) ([]byte, error)) ([]byte, error) {
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, ErrNone
	}
	asking, stop := unhidden(ctx)
	defer stop()
	defer term.Restore(fd, state) // even if interrupted: otherwise the terminal would keep hiding input
	defer fmt.Fprintln(out)
	fmt.Fprint(out, prompt)
	answer, err := Interruptible(asking, func() ([]byte, error) { return read(fd) })
	if errors.Is(err, io.EOF) {
		return nil, errors.New("nothing was typed")
	}
	if exit := new(cli.Exit); errors.As(context.Cause(asking), &exit) {
		return nil, exit
	}
	return answer, err
}

// unhidden returns a context that ends with signals that would kill the program before it has restored the terminal:
// Ctrl-\, and the SIGHUP that ssh sends its ProxyCommand after a timeout.
func unhidden(ctx context.Context) (context.Context, func()) {
	asking, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, cli.Heeded(syscall.SIGQUIT, syscall.SIGHUP)...)
	go func() {
		select {
		case s := <-signals:
			number, _ := s.(syscall.Signal)
			cancel(&cli.Exit{Code: 128 + int(number)})
		case <-asking.Done():
		}
	}()
	return asking, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// Interruptible runs a read that may wait for the user, until ctx ends. The read is then abandoned: the program exits.
func Interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := read()
		done <- result{b, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-done:
		return r.b, r.err
	}
}

// Confirm asks a question on the terminal, whatever standard input is. Only "y" and "yes" confirm it.
func Confirm(ctx context.Context, question string) (bool, error) {
	in, out, err := Open()
	if err != nil {
		return false, ErrNone
	}
	defer in.Close()
	defer out.Close()
	fmt.Fprint(out, question)
	answer, err := Interruptible(ctx, func() ([]byte, error) {
		line, err := bufio.NewReader(in).ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return line, err
	})
	text := strings.ToLower(strings.TrimSpace(string(answer)))
	return text == "y" || text == "yes", err
}

// NewPassphrase asks for a new passphrase twice. It must not be empty.
func NewPassphrase(ctx context.Context, what string) ([]byte, error) {
	first, err := Ask(ctx, "new passphrase for "+what+" (not shown): ")
	if err != nil {
		return nil, err
	}
	if len(first) == 0 {
		return nil, errors.New("the passphrase is empty; nothing was changed")
	}
	again, err := Ask(ctx, "repeat it: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, again) {
		return nil, errors.New("the two passphrases differ; nothing was changed")
	}
	return first, nil
}
