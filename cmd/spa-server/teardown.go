package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sallyport/firewall"
	"sallyport/spa/config"
)

func newTeardown(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "teardown",
		Short: "Take the guard away, also with the daemon dead",
		Long: `Removes our firewall table: the ports that were guarded are as open as the host's
own firewall leaves them. A running spa-server is told by it and ends.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(*dir)
			if err != nil {
				return err
			}
			if err := firewall.Teardown(c.State); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the guard is gone: the ports are as open as the host's own firewall leaves them")
			return nil
		},
	}
}
