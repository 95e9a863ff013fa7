package enrol

import (
	"errors"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
)

// Limits of a key for a browser, unless others are given: a browser is a weaker place for a key than spa-client's file.
const (
	browserMaxFor  = "1h"
	browserExpires = "30d"
)

// ForBrowser gives a client that a page will knock for a short reach, unless flags of the command say otherwise.
// Without --for-browser it does nothing.
func (t *Terms) ForBrowser(cmd *cobra.Command) error {
	if !t.Browser {
		return nil
	}
	if t.RequireSource {
		return cli.Misuse(errors.New("--require-source: a page cannot find out its own address"),
			"leave it out, or use --from NETWORK")
	}
	if !cmd.Flags().Changed("max-for") {
		t.MaxFor = browserMaxFor
	}
	if !cmd.Flags().Changed("expires") {
		t.Expires = browserExpires
	}
	return nil
}
