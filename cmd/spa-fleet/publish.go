package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/spa/fleet/office"
)

// publishing is where to publish to.
type publishing struct {
	to     string
	over   bool
	asJSON bool
}

func (a *app) publishCommand() *cobra.Command {
	var p publishing
	cmd := &cobra.Command{
		Use:   "publish [--to DIR]",
		Short: "Make a bundle for each gateway",
		Long: `Makes NAME.bundle for each gateway in the directory --to (default: that of the last
publish), with the next serial. Any tool may carry the bundles to the gateways (rsync, git,
a web server, spa-fleet agent): they are signed, and sealed to their gateways. All are made
before one is written. Interrupted, run it again.

If another administrator has published since your copy of the office was made, publish
refuses: get their changes first (git pull). --over publishes anyway, with a higher serial,
if their changes are lost.`,
		Example: `  spa-fleet publish --to /srv/bundles
  spa-fleet publish && git commit -am publish && rsync -a bundles/ web7:/var/lib/bundles/`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error { return a.publish(cmd, o, v, p) })
		},
	}
	cmd.Flags().StringVar(&p.to, "to", "", "`DIR` for the bundles")
	cmd.MarkFlagDirname("to")
	cmd.Flags().BoolVar(&p.over, "over", false, "publish although this office lacks a later publish")
	cli.JSONFlag(cmd, &p.asJSON)
	return cmd
}

// destination returns the directory of the bundles, and how the office names it.
func (a *app) destination(o *office.Office, to string) (dir, name string, err error) {
	if to == "" {
		if o.Published.To == "" {
			return "", "", cli.Misuse(errors.New("nothing was published yet, so --to is needed"), "spa-fleet publish --to DIR")
		}
		return o.Destination(), o.Published.To, nil
	}
	if filepath.IsAbs(to) {
		return to, to, nil
	}
	base, err := filepath.Abs(a.dir)
	if err != nil {
		return "", "", err
	}
	full, err := filepath.Abs(to)
	if err != nil {
		return "", "", err
	}
	if name, err = filepath.Rel(base, full); err != nil {
		return full, full, nil // on another drive
	}
	return to, filepath.ToSlash(name), nil
}

func (a *app) publish(cmd *cobra.Command, o *office.Office, v *office.Vault, p publishing) error {
	dir, name, err := a.destination(o, p.to)
	if err != nil {
		return err
	}
	done := cli.Progress(cmd, "sealing bundles")
	report, err := o.Publish(v, dir, name, p.over, time.Now())
	done()
	switch {
	case errors.Is(err, office.ErrNewer):
		return cli.Fail(err, "get their changes, and publish again: git -C "+quote.Shell(a.dir)+
			" pull; if those are lost: --over")
	case errors.Is(err, office.ErrSameID):
		return cli.Fail(err, "give one of them a new key: spa-fleet client rotate NAME")
	case errors.Is(err, fs.ErrNotExist):
		return cli.Fail(err, "make the directory first: mkdir "+quote.Shell(dir))
	case err != nil:
		return err
	}
	if p.asJSON {
		return cli.JSON(cmd, report)
	}
	tellChanges(cmd, report.Changes)
	if n := len(report.Earlier); n > 0 {
		cli.Warn(cmd, "a removed administrator can open the keys of %d clients, such as %s: spa-fleet client rotate %[2]s", n,
			report.Earlier[0])
	}
	for _, name := range report.Removed {
		cli.Note(cmd, "removed the bundle of %s, which is retired", name)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "published serial %d in %s: %d gateways, %d clients, %d bytes\n",
		report.Serial, dir, len(report.Gateways), report.Clients, report.Bytes)
	return err
}

// mostChanges is how many changes are printed one by one.
const mostChanges = 20

func tellChanges(cmd *cobra.Command, changes []string) {
	for i, text := range changes {
		if i == mostChanges {
			cli.Note(cmd, "… and %d more changes", len(changes)-i)
			return
		}
		cli.Note(cmd, "%s", text)
	}
}
