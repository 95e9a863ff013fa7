package main

import (
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/client"
)

// patience is how long connect and exec wait for a gateway that has just started, beyond a
// --timeout that nobody has set: "ssh gw" is to succeed where waiting makes it succeed.
const patience = 2 * time.Minute

// waiting shows what is waited for, and takes that away while something else is said.
type waiting struct {
	cmd *cobra.Command

	mu   sync.Mutex
	done func()
	told bool
}

// show shows on a terminal that something is waited for. The function ends that.
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

// early says once that a gateway has just started, and shows that it is waited for.
func (w *waiting) early(gateway string, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told || wait < time.Second {
		return
	}
	w.told = true
	w.done()
	cli.Note(w.cmd, "%s has just started and takes no knocks for another %s: waiting", gateway, seconds(wait))
	w.done = cli.Progress(w.cmd, "waiting for "+gateway)
}

// seconds is a duration in whole seconds, never less than it is.
func seconds(d time.Duration) string {
	return rounded((d + time.Second - 1).Truncate(time.Second))
}

// heed has the command say when it waits for a gateway that has just started. Those that need the
// port itself wait for that however short the usual time is.
func (k *knock) heed(cmd *cobra.Command, host string, c *client.Command) {
	k.shown = &waiting{cmd: cmd, done: func() {}}
	c.Waiting = func(wait time.Duration) { k.shown.early(host, wait) }
	if k.patient && !cmd.Flags().Changed("timeout") {
		c.Patience = patience
	}
}
