package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/firewall"
	"sallyport/keys/quote"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server"
	"sallyport/spa/server/metrics"
	"sallyport/spa/server/setup"
)

func newRun(dir *string) *cobra.Command {
	var confirm time.Duration
	var by string
	var lastGood bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Guard the ports and listen for knocks, in the foreground",
		Long: `Loads the guard, drops privileges, and opens ports for clients that knock, until
it is stopped. The guard stays when it stops: ports are shut, grants end on time.

With --confirm the guard is on trial: unless someone connects through a knock before
the time is over, the kernel removes the guard, even if spa-server was killed. Use it
the first time you guard the port that you log in through. With --recovery NAME too, the
connection must come through a knock of that recovery client: so you know that its printed
page works. The knock is one of its uses.

With --last-good it starts even if server.toml has a mistake: it logs that, and uses the
last good settings. The systemd unit does that, so that a typing error and a reboot lock
no one out.`,
		Example: `  spa-server run
  spa-server run --confirm 5m
  spa-server run --confirm 5m --recovery door`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if confirm < 0 || cmd.Flags().Changed("confirm") && confirm < time.Second {
				return cli.Misuse(fmt.Errorf("--confirm %v: must be at least 1s", confirm), "--confirm 5m")
			}
			if by != "" && confirm == 0 {
				return cli.Misuse(errors.New("--recovery needs --confirm"), "spa-server run --confirm 5m --recovery "+by)
			}
			signal.Ignore(syscall.SIGHUP) // a lost terminal must not leave a guard without a server to open it
			messages := audit.NewQueue(cmd.ErrOrStderr())
			defer messages.Close()
			log := newLog(messages)
			read := func() (*config.Config, error) { return loadAsServer(*dir, log) }
			if lastGood {
				read = func() (*config.Config, error) { return loadOrLastGood(*dir, log) }
			}
			c, err := read()
			if err != nil {
				return err
			}
			s, err := server.Open(cmd.Context(), c, server.Options{Confirm: confirm, ConfirmBy: by, Log: log,
				Version: cli.Version()})
			if err != nil {
				return startError(err, c.State)
			}
			// From here on it reopens the audit log, as daemons do. The processes that Open has started ignore it still.
			stop := onHangup(s.ReopenAudit)
			defer stop()
			return runError(s.Run(cmd.Context()))
		},
	}
	cmd.Flags().BoolVar(&lastGood, "last-good", false, "if server.toml has a mistake, run with the last good settings")
	cmd.Flags().DurationVar(&confirm, "confirm", 0, "remove the guard after `DURATION`, such as 5m, unless someone "+
		"connects through a knock")
	cmd.Flags().StringVar(&by, "recovery", "", "with --confirm: only a connection of the recovery client `NAME` counts")
	return cmd
}

// onHangup calls do at each SIGHUP until stop is called.
func onHangup(do func()) (stop func()) {
	hangups, done, ended := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for {
			select {
			case <-hangups:
				do()
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Ignore(syscall.SIGHUP)
		close(done)
		<-ended
	}
}

// startError adds a hint to an error of a command that needs the state directory.
func startError(err error, state string) error {
	if used, ok := errors.AsType[*metrics.InUse](err); ok {
		return cli.Fail(err, "end that program, or choose another address; this shows which it is: "+used.Show)
	}
	if errors.Is(err, syscall.EROFS) {
		return cli.Fail(err, "if the unit forbids it: systemctl edit spa-guard.service spa-server.service, and add to both: "+
			"[Service] ReadWritePaths=-"+quote.Shell(state))
	}
	if errors.Is(err, setup.ErrNoState) {
		return cli.Fail(err, setup.MakeState(state))
	}
	return runError(err)
}

// runError adds a hint to an error of the server. A guard that was removed on purpose is not a failure: it must not
// make a service manager restart the server.
func runError(err error) error {
	switch {
	case errors.Is(err, firewall.ErrTornDown):
		return nil
	case errors.Is(err, firewall.ErrUnconfirmed):
		return cli.Fail(err, "the guard was removed: the ports are as before the start; knock and connect while it is in "+
			"place, or allow more time with --confirm")
	case errors.Is(err, server.ErrNoRecovery):
		return cli.Fail(err, "spa-keygen list shows the recovery clients and what they have left; to make one: spa-keygen "+
			"new NAME --allow ssh --recovery")
	case errors.Is(err, setup.ErrRunning):
		return cli.Fail(err, "stop it first (systemctl stop spa-server)")
	}
	return err
}
