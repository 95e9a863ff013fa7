package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/fleet/office"
)

// making is a client to make.
type making struct {
	allow, on []string
	terms     enrol.Terms
	handing   enrol.Handing
}

func (a *app) clientNew() *cobra.Command {
	var m making
	cmd := &cobra.Command{
		Use:   "new NAME --allow SERVICE[,SERVICE]",
		Short: "Make a client's key and print its enrolment token",
		Long: `Writes clients/NAME.toml and clients/NAME.age and prints the enrolment token: one line
with all that a client needs for every gateway of the fleet, including those that are added
later. Anyone with the token can open what the client may open: hand it over as you would a
password, for "spa-client import" to read. --qr and --png draw it as a QR code instead.

--on names the gateways and sites that let the client in; without it, all do. "spa-fleet
publish" tells the gateways about the client.

--for-browser makes a key for the page that "spa-keygen page" prints. The page knocks at
gateways whose server.toml has capture.browser=true. It keeps the keys of those that its
user adds, and no others.`,
		Example: `  spa-fleet client new alice --allow ssh
  spa-fleet client new phone --allow ssh --on web7 --for-browser --qr
  spa-fleet client new bob --allow ssh,web --on web7,db1 --expires 90d --out bob.token`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validClient(args[0]); err != nil {
				return err
			}
			if err := m.terms.ForBrowser(cmd); err != nil {
				return err
			}
			t := &keys.Terms{Client: keys.Client{Name: args[0], Allow: m.allow}, Gateways: m.on}
			if err := m.terms.Apply(&t.Client, time.Now()); err != nil {
				return err
			}
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
				return a.makeClient(cmd, o, v, t, m.handing)
			})
		},
	}
	cmd.Flags().StringSliceVar(&m.allow, "allow", nil, "`SERVICE`s that the client may open: names, "+
		"or ports such as tcp/8443")
	cmd.Flags().StringSliceVar(&m.on, "on", nil, "`GATEWAY`s or sites that let it in (default all)")
	m.terms.Flags(cmd)
	m.handing.Flags(cmd)
	cmd.MarkFlagRequired("allow")
	cmd.RegisterFlagCompletionFunc("allow", a.completeAllow)
	cmd.RegisterFlagCompletionFunc("on", a.completeOn)
	return cmd
}

func (a *app) makeClient(cmd *cobra.Command, o *office.Office, v *office.Vault, t *keys.Terms, h enrol.Handing) error {
	for _, entry := range t.Allow {
		if err := o.CheckAllow(entry); err != nil {
			return cli.Misuse(fmt.Errorf("--allow %q: %w", entry, err), "services of this fleet: "+
				strings.Join(sorted(o.Services), ", ")+"; office.toml lists them")
		}
	}
	err := o.NewClient(v, t, func(p *keys.Profile) error { return give(cmd, h, p) })
	switch {
	case errors.Is(err, place.ErrExists):
		return cli.Fail(err, fmt.Sprintf("choose another name, or give %s a new key: spa-fleet client rotate %[1]s",
			t.Name))
	case err != nil:
		return err
	}
	a.publishNext(cmd, o)
	return nil
}

// give hands out a token.
func give(cmd *cobra.Command, h enrol.Handing, p *keys.Profile) error {
	token := p.Token()
	if token == "" {
		return fmt.Errorf("making the token: %w", p.Valid())
	}
	err := h.Give(cmd, p.Client, token, "enrolment token", token)
	if errors.Is(err, fs.ErrExist) {
		return cli.Fail(fmt.Errorf("handing out the token (nothing was changed): %w", err),
			"a token never overwrites a file: choose another file")
	}
	if err != nil {
		err = fmt.Errorf("handing out the token (nothing was changed): %w", err)
	}
	return err
}
