package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/audit"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

func newReload(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Apply changed files, all or none",
		Long: `Has the running spa-server read server.toml, gate.key and all client files again. If any
of them has a mistake, or a changed setting needs a restart, it names them all and nothing
changes. Otherwise everything takes effect at once; sessions continue, and so do grants
that the new settings still allow.

Changes of single client files need no reload: they take effect as soon as they are written.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, *dir, control.Request{Command: control.CommandReload}, func(r control.Reply) error {
				if r.Reloaded == nil {
					return nil
				}
				if err := setup.KeepSettings(cmd.Context(), *dir, time.Now()); err != nil {
					cli.Warn(cmd, "the settings could not be saved for a boot with a mistake in server.toml: %v", err)
				}
				if asJSON {
					return cli.JSON(cmd, r.Reloaded)
				}
				return printReloaded(cmd, *r.Reloaded)
			})
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func printReloaded(cmd *cobra.Command, r control.Reloaded) error {
	var lines []string
	for _, part := range []struct {
		what  string
		names []string
	}{{"settings changed", r.Settings}, {"clients added", r.Added}, {"clients changed", r.Changed},
		{"clients removed", r.Removed}} {
		if len(part.names) > 0 {
			lines = append(lines, part.what+": "+audit.Few(part.names, 20))
		}
	}
	now := time.Now()
	for _, g := range r.Ended {
		lines = append(lines, "ended: "+endedLine(g, now))
	}
	if len(lines) == 0 {
		lines = []string{"nothing has changed"}
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(lines, "\n"))
	return err
}
