package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/server"
)

func newGuard(dir *string) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Load the guard and end, at boot before the network is up",
		Long: `Shuts the guarded ports and ends. It listens for nothing; "spa-server run" does.
At boot it stands before the network, so that no port is open for a moment.

--print writes the guard in nft's words instead, without grants, and changes nothing: for
the file that your host loads its rules from. It needs persist = "file" in server.toml.`,
		Example: `  spa-server guard
  spa-server guard --print > /etc/spa/guard.nft`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(*dir)
			if err != nil {
				return err
			}
			if only {
				return printGuard(cmd, c)
			}
			lock, err := server.Lock(c.State)
			if errors.Is(err, server.ErrRunning) {
				fmt.Fprintln(cmd.OutOrStdout(), "the guard is in the care of the running spa-server")
				return nil
			}
			if err != nil {
				return startError(err, c.State)
			}
			defer lock.Close()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			clients, problems := keys.LoadRegistry(filepath.Join(c.Dir, config.ClientsDir))
			for _, problem := range problems {
				log.Error("a client file was left out", "error", problem)
			}
			fw, err := firewall.New(server.FirewallConfig(c, clients, time.Now), log)
			if err != nil {
				return err
			}
			defer fw.Close()
			if err := fw.Load(cmd.Context(), 0, time.Now()); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the guard is in place:", fw.Describe())
			return nil
		},
	}
	cmd.Flags().BoolVar(&only, "print", false, "write the guard as a file for nft -f, and change nothing")
	return cmd
}

// printGuard writes the guard without grants, so no client matters.
func printGuard(cmd *cobra.Command, c *config.Config) error {
	rules, err := firewall.Rules(server.FirewallConfig(c, nil, time.Now))
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), rules)
	return err
}
