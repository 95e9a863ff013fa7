package main

import (
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa/config"
	webpage "sallyport/spa/page"
)

func newPage() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "page",
		Short: "Print the page with which a browser knocks",
		Long: `Prints one file of HTML. A phone or a computer that opens it knocks without any
program, if the gateway takes knocks from browsers (capture.browser in server.toml). It
holds no key: give each user a token of "spa-keygen new NAME --for-browser", or of
"spa-fleet client new NAME --for-browser".

Serve it by HTTPS from a host that you control, or hand out the file. A web server that serves the
page can take the keys that are entered in it. --dir writes a directory to serve: with
its other files, phones put the page on the home screen and show it without a network.`,
		Example: `  spa-keygen page > knock.html
  spa-keygen page --dir /var/www/knock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir != "" {
				return writeSite(dir)
			}
			_, err := cmd.OutOrStdout().Write(webpage.HTML())
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "write the files of a web site into `DIRECTORY`, in place of earlier ones, "+
		"instead of printing the page")
	return cmd
}

// writeSite writes the files of the page, each whole or not at all.
func writeSite(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range webpage.Site() {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}

// forBrowser gives a client that a page will knock for a short reach, and warns of what keeps the page from knocking.
func (m *making) forBrowser(cmd *cobra.Command, c *config.Config) error {
	if err := m.terms.ForBrowser(cmd); err != nil || !m.terms.Browser {
		return err
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
