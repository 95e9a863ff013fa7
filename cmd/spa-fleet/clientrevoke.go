package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sallyport/spa/fleet/office"
)

func (a *app) clientRevoke() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Revoke a client's key permanently",
		Long: `Marks the client as revoked. The next publish leaves it out, and each gateway shuts it out
when that bundle arrives. A gateway that gets no bundles continues to let it in.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validClient(args[0]); err != nil {
				return err
			}
			o, err := a.load()
			if err == nil && o.Client(args[0]) != nil && o.Client(args[0]).Revoked.IsZero() {
				err = sure(cmd, yes, fmt.Sprintf("Client %s will be shut out of every gateway. Revoke it?", args[0]))
			}
			if err != nil {
				return err
			}
			return a.change(func(o *office.Office) error {
				err := o.RevokeClient(args[0], time.Now())
				if errors.Is(err, office.ErrRevoked) {
					fmt.Fprintln(cmd.OutOrStdout(), err)
					return nil
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked, but can still knock until the gateways have the next "+
					"bundle\n", args[0])
				a.publishNext(cmd, o)
				return nil
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}
