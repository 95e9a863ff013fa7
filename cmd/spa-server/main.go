// Command spa-server guards a host's ports and opens them to clients that knock with a key.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/firewall"
	"sallyport/spa/action"
)

func main() {
	firewall.Helper()
	action.Serve()
	os.Exit(cli.Main("spa-server", newRoot()))
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "spa-server",
		Short: "Keep ports shut until a client knocks with a key",
		Long: `spa-server keeps the ports of this host shut, and opens one to one address when a
client's single encrypted packet asks for it and the client's key allows it.

  spa-server init --address gw.example.net --service ssh=tcp/22
  spa-keygen new alice --allow ssh
  spa-server run --confirm 5m`,
	}
	var dir string
	cli.ConfigFlag(root, &dir, "/etc/spa")
	root.AddCommand(newInit(&dir), newRun(&dir), newGuard(&dir), newCheck(&dir), newTeardown(&dir),
		newStatus(&dir), newGrants(&dir), newWatch(&dir), newRevoke(&dir), newReload(&dir), newSet(&dir), newInspect(&dir),
		newMoveState(&dir), newPrepare(&dir), newRemember(&dir))
	return root
}
