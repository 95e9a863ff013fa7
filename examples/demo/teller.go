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

// teller prints the story: what is done, by whom, and how it went.
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

// heading starts a step or the whole.
func (t *teller) heading(text string) {
	fmt.Fprintf(t.w, "\n%s\n", t.paint(bold, text))
}

// say prints plain words, line by line as they are.
func (t *teller) say(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "   %s\n", strings.TrimRight(line, "\n"))
	}
}

// command prints a command line after its prompt.
func (t *teller) command(prompt, line string) {
	fmt.Fprintf(t.w, "   %s %s\n", prompt, t.paint(bold, line))
}

// output prints what a command said.
func (t *teller) output(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "      %s\n", t.paint(faint, strings.TrimRight(line, "\n")))
	}
}

// verdict prints how something promised went, and passes the error on.
func (t *teller) verdict(what, how string, err error) error {
	mark := t.paint(green, "ok ")
	if err != nil {
		mark = t.paint(red, "BAD")
	}
	fmt.Fprintf(t.w, "   %s  %-38s %s\n", mark, what, how)
	return err
}

// step is a part of the story that can go wrong.
type step struct {
	title string
	do    func(context.Context) error
}

// follow takes the steps in order. It stops at the first that is not as promised and names it.
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

// promise is what a connection attempt is to meet.
type promise bool

const (
	dark promise = false // no answer at all
	open promise = true  // accepted
)

// judge says how an attempt to connect went, and returns an error if that is not
// what was promised. A refusal is neither: it is an answer, and shows that somebody is there.
func judge(want promise, err error) (how string, broken error) {
	var late interface{ Timeout() bool }
	switch {
	case err == nil && want == open:
		return "connected", nil
	case err == nil:
		return "connected", errors.New("connected to a port that was to be dark")
	case errors.As(err, &late) && late.Timeout() && want == dark:
		return "no answer", nil
	case errors.As(err, &late) && late.Timeout():
		return "no answer", errors.New("no answer from a port that was to be open")
	}
	return err.Error(), fmt.Errorf("an answer that was not promised: %w", err)
}
