package main

import (
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/client"
)

// patience is how long connect and exec wait for a gateway that has just started, unless --timeout is given: "ssh gw"
// should succeed if waiting helps.
const patience = 2 * time.Minute

// waiting shows what the command waits for, and hides that while something else is printed.
type waiting struct {
	cmd *cobra.Command

	mu   sync.Mutex
	done func()
	told bool
}

// show shows on a terminal what the command waits for, until the returned function is called.
func (w *waiting) show(what string) (hide func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = cli.Progress(w.cmd, what)
	return w.hide
}

func (w *waiting) hide() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done()
}

// early prints once that a gateway has just started, and shows that the command waits for it.
func (w *waiting) early(gateway string, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told || wait < time.Second {
		return
	}
	w.told = true
	w.done()
	cli.Note(w.cmd, "%s has just started and accepts no knocks for another %s: waiting", gateway, seconds(wait))
	w.done = cli.Progress(w.cmd, "waiting for "+gateway)
}

// seconds formats a duration, rounded up to whole seconds.
func seconds(d time.Duration) string {
	return rounded((d + time.Second - 1).Truncate(time.Second))
}

// heed makes the command report that it waits for a gateway that has just started. Commands that need the port itself
// wait even beyond the usual timeout.
func (k *knock) heed(cmd *cobra.Command, host string, c *client.Command) {
	k.shown = &waiting{cmd: cmd, done: func() {}}
	c.Waiting = func(wait time.Duration) { k.shown.early(host, wait) }
	if k.patient && !cmd.Flags().Changed("timeout") {
		c.Patience = patience
	}
}
