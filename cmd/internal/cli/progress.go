package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Most answers come at once: a line that flickers would only distract.
const (
	progressAfter = 400 * time.Millisecond
	progressEvery = time.Second
)

// Progress shows on a terminal what the program waits for and for how long, on a line that the returned function
// removes. It writes nothing if standard error is not a terminal.
func Progress(cmd *cobra.Command, what string) (done func()) {
	w := cmd.ErrOrStderr()
	if !isTerminal(w) || os.Getenv("TERM") == "dumb" {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		progress(w, what, stop)
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
}

// progress rewrites the line until it is stopped, and then removes it.
func progress(w io.Writer, what string, stop <-chan struct{}) {
	began := time.Now()
	timer := time.NewTimer(progressAfter)
	defer timer.Stop()
	shown := false
	for {
		select {
		case <-stop:
			if shown {
				fmt.Fprint(w, "\r\x1b[K") // ECMA-48: to the first column, erase the line
			}
			return
		case <-timer.C:
			fmt.Fprintf(w, "\r\x1b[K%s … %ds", what, int(time.Since(began).Seconds()))
			shown = true
			timer.Reset(progressEvery)
		}
	}
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Interactive reports whether a command can draw on a terminal and be operated by keys.
func Interactive(cmd *cobra.Command) bool {
	in, ok := cmd.InOrStdin().(*os.File)
	return ok && term.IsTerminal(int(in.Fd())) && isTerminal(cmd.OutOrStdout()) &&
		os.Getenv("TERM") != "" && os.Getenv("TERM") != "dumb"
}
