// Command spa-client asks a gateway to open a port with a single packet.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
)

func main() { os.Exit(cli.Main("spa-client", newRoot())) }

// app is what the commands share.
type app struct {
	config string  // directory of the configuration
	ring   keyring // of the desktop
}

func newRoot() *cobra.Command { return (&app{ring: desktop{}}).root() }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "spa-client",
		Short: "Open a gateway's port to this address for a short time",
		Long: `Spa-client sends a gateway a single packet that only the gateway can read. The
gateway then opens the service to this machine's address for a short time and confirms
that in a receipt. Sessions started in that time continue after it.

Exit status: 0 done, 1 failed, 2 misused, 3 refused by the gateway, 4 no answer,
130 interrupted.`,
		Example: `  spa-client import alice.token
  spa-client open ssh --host gw && ssh gw.example.net
  spa-client close ssh --host gw`,
	}
	cli.ConfigFlag(root, &a.config, defaultConfig())
	root.AddCommand(a.importCommand(), a.hostsCommand(), a.forgetCommand(), a.lockCommand(), a.unlockCommand(),
		a.openCommand(), a.closeCommand(),
		a.connectCommand(), a.execCommand(), a.sshConfigCommand(), a.doctorCommand(), a.probeCommand())
	return root
}
