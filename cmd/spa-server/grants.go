package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/server/control"
)

func newGrants(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "grants",
		Short: "List what is open now: for whom, from where, until when",
		Long: `Lists the live grants of the running spa-server: client, service, the address that is
let in, ports, and end.`,
		Example: `  spa-server grants
  spa-server grants --json | jq -r 'select(.client == "alice").source'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			if !asJSON {
				fmt.Fprintln(w, "CLIENT\tSERVICE\tSOURCE\tPORTS\tUNTIL")
			}
			err := ask(cmd, *dir, control.Request{Command: control.CommandGrants}, func(r control.Reply) error {
				if r.Grant == nil {
					return nil
				}
				if asJSON {
					return cli.JSON(cmd, r.Grant)
				}
				_, err := fmt.Fprintln(w, grantLine(*r.Grant, now))
				return err
			})
			if err != nil || asJSON {
				return err
			}
			return w.Flush()
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}
