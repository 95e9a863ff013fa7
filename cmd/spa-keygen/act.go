package main

import (
	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/spa/server/acts"
	"sallyport/spa/server/control"
)

// record puts what a command has done into the audit log. If that fails it warns: the command has succeeded.
func record(cmd *cobra.Command, dir string, a control.Act) {
	a.Act, a.Program = cmd.Name(), "spa-keygen"
	if err := acts.Record(cmd.Context(), dir, cli.Version(), a); err != nil {
		cli.Warn(cmd, "the audit log has no line of this: %v", err)
	}
}

// actOn returns an act on a client.
func actOn(c *keys.Client) control.Act { return control.Act{Client: c.Name, Key: c.ID.String()} }
