package main

import (
	"crypto/ed25519"
	"fmt"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/fleet/office"
)

func (a *app) rotateKeyCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rotate-key",
		Short: "Replace the key that signs bundles",
		Long: `Makes a new key that signs bundles, for when an administrator who had the old one has left.
For each gateway it prints the command with which the gateway trusts the new key. Until that
has run there, the gateway keeps its bundle and refuses newer ones. Publish first, and bring
the bundles to the gateways: a gateway that trusts the new key, but has no bundle signed with
it, shuts all clients of the fleet out.

The key that the gateways of a site share stays, and an administrator who has left knows it:
end that administrator's access to the store, too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := sure(cmd, yes, "Every gateway will refuse new bundles until it trusts the new key. Replace the key?")
			if err != nil {
				return err
			}
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
				known, err := a.known()
				if err != nil {
					return err
				}
				err = o.RotateKey(v, func(key ed25519.PublicKey) error { return known.Expect(o.Fleet, key) })
				if err != nil {
					return err
				}
				if err := known.Trust(o.Fleet, o.Key); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "made a new key; publish, bring each gateway its bundle, and only then "+
					"run there, as root:\n\n")
				for _, g := range o.Active() {
					fmt.Fprintf(cmd.OutOrStdout(), "  %s# %s && systemctl restart spa-server\n", g.Name, pinning(o, g))
				}
				fmt.Fprintln(cmd.OutOrStdout())
				if len(o.Admins) > 1 {
					cli.Note(cmd, "the other administrators run: spa-fleet trust %s", o.KeyText())
				}
				a.publishNext(cmd, o)
				return nil
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}
