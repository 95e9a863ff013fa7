package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// teller prints the story: what happens, to whom, and the outcome.
type teller struct {
	w      io.Writer
	colour bool
}

// newTeller uses colour on a terminal, unless NO_COLOR is set.
func newTeller(f *os.File) *teller {
	return &teller{w: f, colour: term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	faint = "2"
	red   = "1;31"
	green = "32"
)

func (t *teller) paint(style, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// heading starts a step or the whole story.
func (t *teller) heading(text string) {
	fmt.Fprintf(t.w, "\n%s\n", t.paint(bold, text))
}

// say prints plain text, line by line.
func (t *teller) say(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "   %s\n", strings.TrimRight(line, "\n"))
	}
}

// command prints a command line after its prompt.
func (t *teller) command(prompt, line string) {
	fmt.Fprintf(t.w, "   %s %s\n", prompt, t.paint(bold, line))
}

// output prints a command's output.
func (t *teller) output(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "      %s\n", t.paint(faint, strings.TrimRight(line, "\n")))
	}
}

// verdict prints the outcome of a promise, and returns its error.
func (t *teller) verdict(what, how string, err error) error {
	mark := t.paint(green, "ok ")
	if err != nil {
		mark = t.paint(red, "BAD")
	}
	fmt.Fprintf(t.w, "   %s  %-38s %s\n", mark, what, how)
	return err
}

// step is a part of the story that can fail.
type step struct {
	title string
	do    func(context.Context) error
}

// follow runs the steps in order. It stops at the first that fails, and names it.
func (t *teller) follow(ctx context.Context, steps []step) error {
	for i, s := range steps {
		t.heading(fmt.Sprintf("%d. %s", i+1, s.title))
		err := s.do(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("step %d (%s): interrupted", i+1, s.title)
		}
		if err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, s.title, err)
		}
	}
	return nil
}

// promise is the promised outcome of a connection attempt.
type promise bool

const (
	dark promise = false // no answer at all
	open promise = true  // accepted
)

// judge describes the outcome of a connection attempt, and returns an error if it is not what was promised. A refusal
// is neither promise: it is an answer, and reveals a host.
func judge(want promise, err error) (how string, broken error) {
	var late interface{ Timeout() bool }
	switch {
	case err == nil && want == open:
		return "connected", nil
	case err == nil:
		return "connected", errors.New("connected to a port that must be dark")
	case errors.As(err, &late) && late.Timeout() && want == dark:
		return "no answer", nil
	case errors.As(err, &late) && late.Timeout():
		return "no answer", errors.New("no answer from a port that must be open")
	}
	return err.Error(), fmt.Errorf("an answer that was not promised: %w", err)
}
