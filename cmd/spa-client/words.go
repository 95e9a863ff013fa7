package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys"
)

// mayBeWords reports whether a text that is not a token may be the words of one: several words and numbers of lines,
// and nothing else.
func mayBeWords(text string) bool {
	const some = 4
	plain := strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.:) \t\r\n") == ""
	return plain && len(strings.Fields(text)) >= some
}

func noWords(err error) error {
	return cli.Fail(fmt.Errorf("the words are not a token: %w", err), "correct that and import again; spa-client import "+
		"--words checks each line as it is typed")
}

// wordsIn returns the numbered lines of a recovery page, or text itself if it has nothing but words.
func wordsIn(text string) string {
	if mayBeWords(text) {
		return text
	}
	var numbered strings.Builder
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && strings.Trim(f[0], "0123456789") == "" {
			numbered.WriteString(line)
		}
	}
	return numbered.String()
}

// readWords prompts for the words of a recovery page, line by line, until they are a token. From a file or a pipe it
// reads them all.
func readWords(cmd *cobra.Command, file string) (*keys.Profile, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if file != "-" || !ok || !term.IsTerminal(int(in.Fd())) {
		data, err := readInput(cmd, file)
		if err != nil {
			return nil, fmt.Errorf("reading the words: %w", err)
		}
		p, err := keys.ParseWords(wordsIn(decoded(data)))
		if err != nil {
			return nil, noWords(err)
		}
		return p, nil
	}
	return askWords(cmd, in)
}

func askWords(cmd *cobra.Command, in io.Reader) (*keys.Profile, error) {
	const most = 1000 // more than any token has
	var lines []string
	for typed := bufio.NewReader(in); len(lines) < most; {
		fmt.Fprintf(cmd.ErrOrStderr(), "line %d: ", len(lines)+1)
		line, err := tty.Interruptible(cmd.Context(), func() ([]byte, error) { return typed.ReadBytes('\n') })
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr())
		}
		if errors.Is(err, io.EOF) {
			return nil, cli.Fail(errors.New("no host was added: lines are missing"),
				"run it again and type every line of the page")
		}
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(line)) == "" {
			continue
		}
		if err := keys.CheckWords(len(lines), string(line)); err != nil {
			cli.Warn(cmd, "%v: type this line again", err)
			continue
		}
		lines = append(lines, string(line))
		if p, err := keys.ParseWords(strings.Join(lines, "")); err == nil {
			return p, nil
		}
	}
	return nil, noWords(keys.ErrWords)
}

// spare returns an error for a recovery key: each knock of the command would be a use, although nobody wants to get in.
func spare(p *keys.Profile, command string) error {
	if !p.Recovery {
		return nil
	}
	return cli.Misuse(fmt.Errorf("%s has a recovery key, and each knock of %s would be one of its few uses", p.Name,
		command), "use the host of another key: --host NAME")
}
