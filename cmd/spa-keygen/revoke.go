package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/keys"
	"sallyport/spa/config"
)

func newRevoke(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Revoke a client's key, for ever",
		Long: `Marks the client as revoked in its file. A running spa-server takes it at once:
its knocks are met with silence, and what it had open is shut for new
connections. Sessions that are open go on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := read(*dir, args[0])
			if err != nil {
				return err
			}
			if !c.Revoked.IsZero() {
				fmt.Fprintf(cmd.OutOrStdout(), "%s was revoked on %s already\n", c.Name, c.Revoked.Local().Format("2006-01-02 15:04:05"))
				return nil
			}
			revoked := *c
			revoked.Revoked = time.Now().UTC().Truncate(time.Second)
			if err := keys.WriteClient(filepath.Join(*dir, config.ClientsDir), &revoked, false); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked\n", c.Name)
			return nil
		},
	}
}
