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
	return &cobra.Command{
		Use:   "guard",
		Short: "Load the guard and end, at boot before the network is up",
		Long: `Shuts the guarded ports and ends. It listens for nothing; "spa-server run" does.
At boot it stands before the network, so that no port is open for a moment.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(*dir)
			if err != nil {
				return err
			}
			lock, err := server.Lock(c.State)
			if errors.Is(err, server.ErrRunning) {
				fmt.Fprintln(cmd.OutOrStdout(), "the guard is in the care of the running spa-server")
				return nil
			}
			if err != nil {
				return err
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
}
