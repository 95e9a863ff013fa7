package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sallyport/keys"
)

func (a *app) forgetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forget HOST",
		Short: "Remove a host and its key",
		Long: `Forget removes a host and its key from this machine. The gateway still accepts any
copy of the key: to end that, run spa-keygen revoke there, or spa-fleet client revoke for a
fleet.`,
		Example:           "  spa-client forget gw",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := whole(cmd, args[0]); err != nil {
				return err
			}
			path, err := a.profilePath(args[0])
			if err != nil {
				return err
			}
			s, unread := keys.ReadStored(path)
			err = os.Remove(path) // even if it cannot be read
			left, leftErr := keys.Sweep(filepath.Dir(path), args[0])
			if errors.Is(err, fs.ErrNotExist) && leftErr == nil {
				if left == 0 {
					return a.noHost(args[0])
				}
				err = nil
			}
			if err := errors.Join(err, leftErr); err != nil {
				return fmt.Errorf("forgetting %s: %w", args[0], err)
			}
			if unread == nil {
				a.dropSeveral(&s.Profile)
				a.discard(cmd, s)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "forgot %s\n", args[0])
			return nil
		},
	}
}
