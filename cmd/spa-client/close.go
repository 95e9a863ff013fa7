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
		Long: `Close ends this client's grants for this address early. Established sessions continue,
and so do grants of other clients for the same address.`,
		Example: "  spa-client close ssh --host gw",
		Args:    serviceArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd, spa.TypeClose, args, 0)
		},
		ValidArgsFunction: k.completeServices,
	}
	k.flags(cmd)
	return cmd
}
