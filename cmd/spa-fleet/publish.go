package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/spa/fleet/office"
)

// publishing is where to publish to.
type publishing struct {
	target
	over   bool
	asJSON bool
}

func (a *app) publishCommand() *cobra.Command {
	var p publishing
	cmd := &cobra.Command{
		Use:   "publish [--to DIR]",
		Short: "Make a bundle for each gateway",
		Long: `Writes a NAME.bundle with the next serial for each gateway, into the directory --to
(default: that of the last publish) or into etcd, where spa-fleet agent on each gateway
fetches its own. Any tool may carry bundles to gateways (rsync, git, a web server, spa-fleet
agent), because they are signed, and sealed to their gateways. All bundles are made before
the first is written. Interrupted, it stops after the bundle that it is writing, and
prints what it left and how to continue.

If --to has a bundle that your copy of the office does not know, another administrator has
published, and publish refuses: get their changes first (git pull). If their changes are
lost, --over publishes anyway, with a higher serial.`,
		Example: `  spa-fleet publish --to /srv/bundles
  spa-fleet publish && git commit -am publish && rsync -a bundles/ web7:/var/lib/bundles/
  spa-fleet publish --to etcd://192.0.2.10:2379,192.0.2.11:2379 --ca ca.pem --cert me.pem --key me.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error { return a.publish(cmd, o, v, p) })
		},
	}
	p.flags(cmd, "for the bundles")
	cmd.Flags().BoolVar(&p.over, "over", false, "publish over another administrator's later publish")
	cli.JSONFlag(cmd, &p.asJSON)
	return cmd
}

func (a *app) publish(cmd *cobra.Command, o *office.Office, v *office.Vault, p publishing) error {
	d, err := a.open(o, p.target)
	if err != nil {
		return err
	}
	defer d.close()
	done := cli.Progress(cmd, "sealing bundles")
	report, err := o.Publish(cmd.Context(), v, d, d.name, p.over, time.Now())
	done()
	switch {
	case errors.Is(err, context.Canceled):
		tellInterrupted(cmd, err)
		return err
	case errors.Is(err, office.ErrNewer):
		return cli.Fail(err, "get their changes, and publish again: git -C "+quote.Shell(a.dir)+
			" pull; if they are lost: --over")
	case errors.Is(err, office.ErrSameID):
		return cli.Fail(err, "give one of them a new key: spa-fleet client rotate NAME")
	case errors.Is(err, fs.ErrNotExist):
		return cli.Fail(err, "make the directory first: mkdir "+quote.Shell(d.path))
	case err != nil:
		return err
	}
	if p.asJSON {
		return cli.JSON(cmd, report)
	}
	tellChanges(cmd, report.Changes)
	if report.Over {
		cli.Warn(cmd, "clients that others revoked after serial %d may get in again: check with spa-fleet client list",
			o.Published.Serial)
	}
	if n := len(report.Earlier); n > 0 {
		cli.Warn(cmd, "a removed administrator can open the keys of %d clients, such as %s: spa-fleet client rotate "+
			"%[2]s", n, report.Earlier[0])
	}
	for _, name := range report.Removed {
		cli.Note(cmd, "removed the bundle of %s, which is retired", name)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "published serial %d in %s: %d gateways, %d clients, %d bytes\n",
		report.Serial, quote.Printable(d.path), len(report.Gateways), report.Clients, report.Bytes)
	return err
}

// tellInterrupted prints what an interrupted publish left, and the command that continues it.
func tellInterrupted(cmd *cobra.Command, err error) {
	left := "nothing was published"
	if partial, ok := errors.AsType[*office.Partial](err); ok {
		left = fmt.Sprintf("some gateways may have their bundle with serial %d, the others not yet",
			partial.Serial)
	}
	again := cmd.CommandPath()
	cmd.Flags().Visit(func(f *pflag.Flag) {
		again += " --" + f.Name
		if f.Value.Type() != "bool" {
			again += " " + quote.Shell(f.Value.String())
		}
	})
	cli.Note(cmd, "interrupted: %s; next: %s", left, again)
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
