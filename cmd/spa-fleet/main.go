// Command spa-fleet is the office of a fleet of gateways: who may use which of them.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
)

func main() { os.Exit(cli.Main("spa-fleet", newRoot())) }

// An app has the flags of all commands.
type app struct {
	dir      string // the office
	identity string // the administrator's file; empty: the default
}

func newRoot() *cobra.Command {
	a := new(app)
	root := &cobra.Command{
		Use:   "spa-fleet",
		Short: "Decide who may use which gateway of a fleet",
		Long: `spa-fleet keeps the office of a fleet: a directory, in git if you like, with the clients,
the gateways, and who may use which. "spa-fleet publish" makes a bundle for each gateway,
signed by the office and sealed to that gateway. A server that stores bundles cannot read
or change them.

  spa-fleet init --name prod --domain example.net --service ssh=tcp/22
  web7# spa-server init --fleet                       it prints a line
  spa-fleet gateway add web7 web7.line
  spa-fleet client new alice --allow ssh > alice.token
  spa-fleet publish --to /srv/bundles

For a single gateway, see spa-keygen(8).`,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.dir, "office", ".", "`DIR` of the office")
	flags.StringVar(&a.identity, "identity", "", "`FILE` with this administrator's identity (default "+
		"~/.config/spa/fleet.identity)")
	root.MarkPersistentFlagDirname("office")
	root.AddCommand(a.initCommand(), a.gatewayCommand(), a.clientCommand(), a.adminCommand(), a.publishCommand(),
		a.statusCommand(), a.rotateKeyCommand(), a.trustCommand(), newAgent())
	return root
}

// group returns a command that only has other commands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	cmd.AddCommand(commands...)
	return cmd
}
