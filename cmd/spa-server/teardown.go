package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/config"
	"sallyport/spa/server/acts"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

func newTeardown(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "teardown",
		Short: "Remove the guard, even if the daemon is dead",
		Long: `Removes our firewall table: the guarded ports are then as open as the host's own
firewall leaves them. A running spa-server notices that and exits.

It works even if the files have mistakes or are lost.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, err := tornDownState(*dir)
			if err != nil {
				return err
			}
			unusable, err := setup.Teardown(state)
			if err != nil {
				return cli.AsRoot(err, "spa-server")
			}
			if unusable != nil {
				cli.Warn(cmd, "the state directory is unusable: %v", unusable)
			}
			act := control.Act{Act: "teardown", Program: "spa-server"}
			if err := acts.Record(cmd.Context(), *dir, cli.Version(), act); err != nil {
				cli.Warn(cmd, "the audit log has no line of this: %v", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the guard is gone: the ports are as open as the host's own firewall leaves them")
			return nil
		},
	}
}

// tornDownState returns the state directory of the guard to remove. An administrator who is locked out may have made a
// mistake in the files, so it reads only where that directory is. The running server may have been started with another
// one. If there are no files, a running server of another directory must not be torn down by mistake.
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
	if !setup.Running() {
		return state, nil
	}
	if running, ok := setup.RunningState(dir); ok {
		return running, nil
	}
	if missing == nil {
		return state, nil
	}
	return "", cli.Fail(missing, "the running spa-server uses other files: name them with --config DIR; if they are "+
		"lost, stop it, then tear down again")
}
