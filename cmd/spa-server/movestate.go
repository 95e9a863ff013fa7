package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/spa/server/setup"
)

func newMoveState(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "move-state DIR",
		Short: "Move grants, spent packets and the audit log to another directory",
		Long: `Moves the state from the directory that server.toml names, by default that of
server.toml, to DIR, and writes DIR into server.toml. Clients notice nothing: grants,
closed and revoked ones, and spent packets move too, and the guard stays.

The server must be stopped. If the command was interrupted, run it again.`,
		Example: `  systemctl stop spa-server.service
  spa-server move-state /var/lib/spa
  systemctl start spa-server.service`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			moved, err := setup.MoveState(*dir, to, time.Now())
			switch {
			case errors.Is(err, setup.ErrOccupied):
				return cli.Fail(err, "nothing was changed; name an empty directory, or one that does not exist")
			case errors.Is(err, setup.ErrRunning):
				return cli.Fail(err, "stop it first: systemctl stop spa-server.service")
			case err != nil:
				return loadError(err)
			case !moved:
				fmt.Fprintln(cmd.OutOrStdout(), "the state is in "+quote.Shell(to)+" already")
			default:
				fmt.Fprintln(cmd.OutOrStdout(), "the state is in "+quote.Shell(to)+" now\nnext:\n"+
					"  systemctl start spa-server.service")
			}
			return nil
		},
	}
}
