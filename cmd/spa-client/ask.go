package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// errNoTerminal is returned if there is no one to ask.
var errNoTerminal = errors.New("there is no terminal to ask on")

// ask prompts on the terminal, whatever standard input is, and does not show the answer.
func ask(ctx context.Context, prompt string) ([]byte, error) {
	in, out, err := openTerminal()
	if err != nil {
		return nil, errNoTerminal
	}
	defer in.Close()
	defer out.Close()
	return askOn(ctx, in, out, prompt)
}

// askOn asks on an open terminal.
func askOn(ctx context.Context, in *os.File, out io.Writer, prompt string) ([]byte, error) {
	return readOn(ctx, in, out, prompt, readHidden)
}

// pasteToken asks for a token on an open terminal.
func pasteToken(ctx context.Context, in *os.File, out io.Writer, prompt string) ([]byte, error) {
	return readOn(ctx, in, out, prompt, readPasted)
}

// morePasted is how long to wait for further pasted lines after the first.
const morePasted = 100 * time.Millisecond

// readPasted reads a token. A text pasted with line breaks is not a token. Its other lines are discarded: the shell
// would read them next, run a piece of a key as a command and save it in its history.
func readPasted(fd int) ([]byte, error) {
	line, err := readHidden(fd)
	if err != nil {
		return nil, err
	}
	if _, err := keys.ParseToken(string(line)); err != nil {
		time.Sleep(morePasted)
		dropTyped(fd)
	}
	return line, nil
}

// readOn reads from an open terminal with a function that hides the input.
func readOn(ctx context.Context, in *os.File, out io.Writer, prompt string,
	read func(fd int) ([]byte, error)) ([]byte, error) {
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, errNoTerminal
	}
	asking, stop := unhidden(ctx)
	defer stop()
	defer term.Restore(fd, state) // even if interrupted: otherwise the terminal would keep hiding input
	defer fmt.Fprintln(out)
	fmt.Fprint(out, prompt)
	answer, err := interruptible(asking, func() ([]byte, error) { return read(fd) })
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

// interruptible runs a read that may wait for the user, until ctx ends. The read is then abandoned: the program exits.
func interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
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
