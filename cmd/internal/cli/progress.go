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

// Most answers come at once: a line that flickers up for them would only disturb.
const (
	progressAfter = 400 * time.Millisecond
	progressEvery = time.Second
)

// Progress shows on a terminal that something is being waited for and for how long, on
// a line of its own that the returned function takes away again. Where standard error is
// no terminal nothing is ever written.
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

// progress writes the line anew until it is stopped, and then takes it away.
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

// isTerminal reports whether what is written is read on a terminal.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
