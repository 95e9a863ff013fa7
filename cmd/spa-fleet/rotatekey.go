package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sallyport/spa/fleet/office"
)

func (a *app) rotateKeyCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rotate-key",
		Short: "Replace the key that signs bundles",
		Long: `Makes a new key that signs bundles: when an administrator has left who knew the old one.
It prints the command that makes each gateway trust the new key. Until it has run there, a
gateway keeps the bundle that it has and refuses newer ones. Publish first, and bring the
bundles: a gateway that trusts the new key and has no bundle of it shuts all clients out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := sure(cmd, yes, "Every gateway will refuse new bundles until it is told the new key. Replace it?")
			if err != nil {
				return err
			}
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
				if err := o.RotateKey(v); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "there is a new key; publish, bring each gateway its bundle, and only then run "+
					"there, as root:\n\n")
				for _, g := range o.Active() {
					fmt.Fprintf(cmd.OutOrStdout(), "  %s# %s && systemctl restart spa-server\n", g.Name, pinning(o, g))
				}
				fmt.Fprintln(cmd.OutOrStdout())
				a.publishNext(cmd, o)
				return nil
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}
