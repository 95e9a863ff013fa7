// Command spa-keygen makes, lists, replaces and revokes the keys of a gateway's clients.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
)

func main() { os.Exit(cli.Main("spa-keygen", newRoot())) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "spa-keygen",
		Short: "Make, list, replace and revoke the keys of a gateway's clients",
		Long: `spa-keygen manages the client files of a gateway, one for each user. A running
spa-server applies every change at once.

  spa-keygen new alice --allow ssh > alice.token     give this to alice only
  alice$ spa-client import alice.token`,
	}
	var dir string
	cli.ConfigFlag(root, &dir, "/etc/spa")
	root.AddCommand(newNew(&dir), newList(&dir), newShow(&dir), newRotate(&dir), newRevoke(&dir), newSet(&dir),
		newRotateGate(&dir), newPage())
	return root
}
