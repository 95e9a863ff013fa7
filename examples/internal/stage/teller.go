// Package stage is what the examples share that tell a story: it builds the programs, makes hosts on one network, runs
// commands and servers on them, tries ports, and prints each step with its outcome.
package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"
)

// A Teller prints the story: what happens, to whom, and the outcome.
type Teller struct {
	w      io.Writer
	colour bool
}

// NewTeller uses colour on a terminal, unless NO_COLOR is set.
func NewTeller(f *os.File) *Teller {
	return &Teller{w: f, colour: term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	faint = "2"
	red   = "1;31"
	green = "32"
)

func (t *Teller) paint(style, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// Heading starts a step or the whole story.
func (t *Teller) Heading(text string) {
	fmt.Fprintf(t.w, "\n%s\n", t.paint(bold, text))
}

// Say prints plain text, line by line.
func (t *Teller) Say(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "   %s\n", strings.TrimRight(line, "\n"))
	}
}

// Prompt prints a prompt and the command line after it.
func (t *Teller) Prompt(prompt, line string) {
	fmt.Fprintf(t.w, "   %s %s\n", prompt, t.paint(bold, line))
}

// Output prints a command's output.
func (t *Teller) Output(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "      %s\n", t.paint(faint, strings.TrimRight(line, "\n")))
	}
}

// Verdict prints the outcome of a promise, and returns its error.
func (t *Teller) Verdict(what, how string, err error) error {
	mark := t.paint(green, "ok ")
	if err != nil {
		mark = t.paint(red, "BAD")
	}
	fmt.Fprintf(t.w, "   %s  %-38s %s\n", mark, what, how)
	return err
}

// A Step is a part of the story that can fail.
type Step struct {
	Title string
	Do    func(context.Context) error
}

// Follow runs the steps in order. It stops at the first that fails, and names it.
func (t *Teller) Follow(ctx context.Context, steps []Step) error {
	for i, s := range steps {
		t.Heading(fmt.Sprintf("%d. %s", i+1, s.Title))
		err := s.Do(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("step %d (%s): interrupted", i+1, s.Title)
		}
		if err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, s.Title, err)
		}
	}
	return nil
}

// A Promise is the promised outcome of a connection attempt.
type Promise bool

// What a port may promise.
const (
	Dark Promise = false // no answer at all
	Open Promise = true  // accepted
)

// judge describes the outcome of a connection attempt, and returns an error if it is not what was promised. A refusal
// is neither promise: it is an answer, and reveals a host.
func judge(want Promise, err error) (how string, broken error) {
	var late interface{ Timeout() bool }
	switch {
	case err == nil && want == Open:
		return "connected", nil
	case err == nil:
		return "connected", errors.New("connected to a port that must be dark")
	case errors.As(err, &late) && late.Timeout() && want == Dark:
		return "no answer", nil
	case errors.As(err, &late) && late.Timeout():
		return "no answer", errors.New("no answer from a port that must be open")
	}
	return err.Error(), fmt.Errorf("an answer that was not promised: %w", err)
}

// Lines returns the lines of a table that begin with one of the words, each with the indented lines after it.
func Lines(table string, words ...string) string {
	var out strings.Builder
	with := false
	for line := range strings.Lines(table) {
		word, _, _ := strings.Cut(line, " ")
		if word != "" {
			with = slices.Contains(words, word)
		}
		if with {
			out.WriteString(line)
		}
	}
	return out.String()
}
