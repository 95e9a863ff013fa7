package main

import (
	"errors"
	"net/netip"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa/config"
	webpage "sallyport/spa/page"
)

func newPage() *cobra.Command {
	return &cobra.Command{
		Use:   "page",
		Short: "Print the page with which a browser knocks",
		Long: `Prints one file of HTML. A phone or a computer that opens it knocks without any
program, if the gateway takes knocks from browsers (capture.browser in server.toml). It
holds no key: give each user a token of "spa-keygen new NAME --for-browser".

Serve it by HTTPS from a host that you control, or hand out the file. Whoever serves the
page can take the keys that are entered in it.`,
		Example: `  spa-keygen page > knock.html`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(webpage.HTML())
			return err
		},
	}
}

// Limits of a key for a browser, unless others are given: a browser is a weaker place for a key than spa-client's file.
const (
	browserMaxFor  = "1h"
	browserExpires = "30d"
)

// forBrowser gives a client that a page will knock for a short reach, and warns of what keeps the page from knocking.
func (m *making) forBrowser(cmd *cobra.Command, c *config.Config) error {
	if !m.browser {
		return nil
	}
	if m.terms.requireSource {
		return cli.Misuse(errors.New("--require-source: a page cannot find out its own address"),
			"leave it out, or use --from NETWORK")
	}
	if !cmd.Flags().Changed("max-for") {
		m.terms.maxFor = browserMaxFor
	}
	if !cmd.Flags().Changed("expires") {
		m.terms.expires = browserExpires
	}
	if !c.Capture.Browser {
		cli.Warn(cmd, "this gateway takes no knocks from browsers yet: spa-server set capture.browser=true, then restart it")
	}
	host, _, _ := service.SplitAddress(c.Address) // which the configuration has checked
	if _, err := netip.ParseAddr(host); err != nil {
		cli.Warn(cmd, "the page cannot look up %s: it asks its user for the gateway's address", host)
	}
	return nil
}
