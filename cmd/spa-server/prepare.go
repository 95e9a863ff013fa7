package main

import (
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/server/setup"
)

// errNotRoot is returned by a command that is for root.
var errNotRoot = fmt.Errorf("only root can do that: %w", fs.ErrPermission)

// newPrepare makes the command that the systemd units run as root before the server starts as the user spa.
func newPrepare(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "prepare",
		Short: "Give the server's user the files that it needs, before systemd starts it",
		Long: `The systemd units run it as root, before the server starts as the user spa. It gives that
user the files of the state directory that root made, lets it read server.toml, gate.key
and the last good settings, and prints what it changed. A second call changes nothing.

Files that belong to neither root nor spa stay as they are.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return cli.AsRoot(errNotRoot, "spa-server")
			}
			did, err := setup.Prepare(*dir)
			for _, text := range did {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
}

// newRemember makes the command that the systemd units run as root once the guard is loaded.
func newRemember(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "remember",
		Short: "Keep the settings in force, for a boot at which server.toml has a mistake",
		Long: `The systemd units run it as root once the guard is loaded: the guard and the server fall
back to these settings if server.toml has a mistake. Only root may write them, so that a
server that was taken over cannot decide what is guarded after the next boot.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return cli.AsRoot(errNotRoot, "spa-server")
			}
			return setup.Remember(cmd.Context(), *dir, time.Now())
		},
	}
}
