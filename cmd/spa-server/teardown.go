package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/firewall"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/home"
)

func newTeardown(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "teardown",
		Short: "Take the guard away, also with the daemon dead",
		Long: `Removes our firewall table: the ports that were guarded are as open as the host's
own firewall leaves them. A running spa-server is told by it and ends.

Mistakes in the files, or lost ones, do not keep it from that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, err := tornDownState(*dir)
			if err != nil {
				return err
			}
			if err := firewall.Teardown(state); err != nil {
				return cli.AsRoot(err, "spa-server")
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the guard is gone: the ports are as open as the host's own firewall leaves them")
			return nil
		},
	}
}

// tornDownState is the state directory of the guard to take away. Whoever has locked himself out may
// have done so by a mistake in the files, so none is read but for where that directory is; and a server
// that runs may have been started with another one. Where there are no files, a server of another
// directory is not to be taken for this one's.
func tornDownState(dir string) (string, error) {
	state, missing := config.StateDir(dir)
	if missing != nil {
		var err error
		if state, err = filepath.Abs(dir); err != nil {
			return "", err
		}
	}
	client, err := control.Dial(state)
	if err == nil {
		return state, client.Close()
	}
	if !home.Running() {
		return state, nil
	}
	if running, ok := home.RunningState(dir); ok {
		return running, nil
	}
	if missing == nil {
		return state, nil
	}
	return "", cli.Fail(missing, "the running spa-server has other files: name them with --config DIR; if they are "+
		"lost, stop it, then tear down again")
}
