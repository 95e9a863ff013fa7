package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"sallyport/firewall"
	"sallyport/spa/config"
	"sallyport/spa/server/setup"
)

func newGuard(dir *string) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Load the guard and exit; for boot, before the network is up",
		Long: `Shuts the guarded ports and exits. It does not listen for knocks; "spa-server run" does.
At boot it runs before the network is up, so that no port is open even for a moment.

If server.toml has a mistake or cannot be read, guard reports that and loads the guard with
the last good settings: a mistake must not leave the ports open.

--print writes the guard in nft syntax instead, without grants, and changes nothing: for
the file that your host loads its rules from. It needs persist = "file" in server.toml.`,
		Example: `  spa-server guard
  spa-server guard --print > /etc/spa/guard.nft`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only {
				c, err := load(*dir)
				if err != nil {
					return err
				}
				return printGuard(cmd, c)
			}
			log := newLog(cmd.ErrOrStderr())
			c, err := loadOrLastGood(*dir, log)
			if err != nil {
				return err
			}
			done, err := setup.Guard(cmd.Context(), c, log)
			if err != nil {
				return startError(err, c.State)
			}
			fmt.Fprintln(cmd.OutOrStdout(), done)
			return nil
		},
	}
	cmd.Flags().BoolVar(&only, "print", false, "write the guard as a file for nft -f, and change nothing")
	return cmd
}

// loadOrLastGood reads the configuration. If that fails it logs the error and returns the last good one.
func loadOrLastGood(dir string, log *slog.Logger) (*config.Config, error) {
	c, err := setup.LoadConfig(dir, log)
	if err == nil {
		return c, nil
	}
	last, at, none := setup.LastGood(dir)
	if none != nil {
		return nil, loadError(err)
	}
	log.Error("server.toml cannot be used: its last good version stays in force until it is fixed (spa-server check)",
		"of", at.Format(time.RFC3339), "error", err)
	return last, nil
}

// printGuard writes the guard without grants, so clients do not matter.
func printGuard(cmd *cobra.Command, c *config.Config) error {
	rules, err := firewall.Rules(setup.FirewallConfig(c, nil, time.Now))
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), rules)
	return err
}
