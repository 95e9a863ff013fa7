package main

import (
	"github.com/spf13/cobra"

	"sallyport/spa"
)

func (a *app) closeCommand() *cobra.Command {
	k := &knock{app: a}
	cmd := &cobra.Command{
		Use:   "close SERVICE...",
		Short: "Close services that were opened for this machine's address",
		Long: `Close ends this client's grants for this address early, and those for a network that
contains it. With --let-in, it ends the grants that share an address with that network.
Established sessions continue, and so do grants of other clients for the same address.`,
		Example: `  spa-client close ssh --host gw
  spa-client close ssh --host gw --let-in 198.51.100.0/24`,
		Args: serviceArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd, spa.TypeClose, args, 0)
		},
		ValidArgsFunction: k.completeServices,
	}
	k.flags(cmd)
	cmd.Flags().Var(&k.letIn, "let-in", "`ADDRESS[/LENGTH]` to close for, in place of this machine's address")
	return cmd
}
