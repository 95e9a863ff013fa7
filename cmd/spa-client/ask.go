package main

import (
	"context"
	"io"
	"os"
	"time"

	"sallyport/cmd/internal/tty"
	"sallyport/keys"
)

// pasteToken asks for a token on an open terminal.
func pasteToken(ctx context.Context, in *os.File, out io.Writer, prompt string) ([]byte, error) {
	return tty.ReadOn(ctx, in, out, prompt, readPasted)
}

// morePasted is how long to wait for further pasted lines after the first.
const morePasted = 100 * time.Millisecond

// readPasted reads a token. A text pasted with line breaks is not a token. Its other lines are discarded: the shell
// would read them next, run a piece of a key as a command and save it in its history.
func readPasted(fd int) ([]byte, error) {
	line, err := tty.ReadHidden(fd)
	if err != nil {
		return nil, err
	}
	if _, err := keys.ParseToken(string(line)); err != nil {
		time.Sleep(morePasted)
		tty.DropTyped(fd)
	}
	return line, nil
}
