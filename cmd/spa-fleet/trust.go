package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/fleet"
)

func (a *app) trustCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "trust KEY",
		Short: "Trust the office's key",
		Long: `Remembers the key that signs this office's bundles, after another administrator has
replaced it, or before you use a second office. Ask that administrator for KEY, not the
office's files. All commands that open the vault refuse another key than the one that they
remember: it is in the file --identity with .known added to its name.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := fleet.ParseOfficeKey(args[0])
			if err != nil {
				return cli.Misuse(err, "the administrator who ran spa-fleet rotate-key has it")
			}
			o, err := a.load()
			if err != nil {
				return err
			}
			if !key.Equal(o.Key) {
				return cli.Fail(fmt.Errorf("this office has another key: %s", o.KeyText()),
					"if the other administrator has published, fetch the office's files; otherwise do not use them")
			}
			known, err := a.known()
			if err != nil {
				return err
			}
			if err := known.Trust(o.Fleet, key); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the key of %s is known\n", o.Name)
			return err
		},
	}
}
