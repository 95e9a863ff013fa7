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

// errNoTerminal is returned where nobody can be asked.
var errNoTerminal = errors.New("there is no terminal to ask on")

// ask asks a person at the terminal, whatever standard input is, and does not show the answer.
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

// pasteToken asks on an open terminal for a token.
func pasteToken(ctx context.Context, in *os.File, out io.Writer, prompt string) ([]byte, error) {
	return readOn(ctx, in, out, prompt, readPasted)
}

// morePasted is how long the lines after the first of what is pasted may be on their way.
const morePasted = 100 * time.Millisecond

// readPasted reads a token. What is pasted with line breaks in it is none. Its other lines are thrown
// away: the shell, which reads next, would run a piece of a key as a command and remember it.
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

// readOn reads from an open terminal by a function that makes it hide what is typed.
func readOn(ctx context.Context, in *os.File, out io.Writer, prompt string,
	read func(fd int) ([]byte, error)) ([]byte, error) {
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, errNoTerminal
	}
	asking, stop := unhidden(ctx)
	defer stop()
	defer term.Restore(fd, state) // also when interrupted: or the terminal would go on hiding
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

// unhidden returns a context that ends with signals which would end the program before the terminal is
// put back: Ctrl-\, and what ssh sends its ProxyCommand when it has waited long enough.
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

// interruptible does what may wait for a person unless ctx ends before. It is then left
// behind: the program ends.
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
