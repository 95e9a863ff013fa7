package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
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
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, errNoTerminal
	}
	defer term.Restore(fd, state) // also when interrupted: or the terminal would go on hiding
	defer fmt.Fprintln(out)
	fmt.Fprint(out, prompt)
	answer, err := interruptible(ctx, func() ([]byte, error) { return readHidden(fd) })
	if errors.Is(err, io.EOF) {
		return nil, errors.New("nothing was typed")
	}
	return answer, err
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
