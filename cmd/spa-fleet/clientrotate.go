package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/spa/fleet/office"
)

func (a *app) clientRotate() *cobra.Command {
	overlap := enrol.Overlap(keys.ClientOverlap)
	var r office.Rotation
	var h enrol.Handing
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a client a new key and print its enrolment token",
		Long: `Makes a new key for a client and prints the enrolment token that holds it. The previous
key stays valid for a while, so that the client keeps access until the new token arrives.
Each gateway accepts the new key once it has the bundle of the next "spa-fleet publish".
With --overlap 0 the previous key ends there at the same moment.

At most two keys can be valid. While the previous key is valid, rotate refuses to make a
third. --force ends the previous key. --lost replaces the newer key, if its token was lost.`,
		Example: `  spa-fleet client rotate alice
  spa-fleet client rotate alice --overlap 24h --out alice.token
  spa-fleet client rotate alice --overlap 0          the laptop was stolen`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validClient(args[0]); err != nil {
				return err
			}
			now := time.Now()
			r.Until = overlap.End(now)
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
				return a.rotateClient(cmd, o, v, args[0], r, now, h)
			})
		},
	}
	cmd.Flags().Var(&overlap, "overlap", "how long the previous key stays valid, such as 24h or 7d; 0 ends it at once")
	cmd.Flags().BoolVar(&r.Force, "force", false, "end a previous key that is still valid")
	cmd.Flags().BoolVar(&r.Lost, "lost", false, "replace the newest key, whose token was lost")
	cmd.MarkFlagsMutuallyExclusive("lost", "force")
	cmd.MarkFlagsMutuallyExclusive("lost", "overlap")
	h.Flags(cmd)
	return cmd
}

func (a *app) rotateClient(cmd *cobra.Command, o *office.Office, v *office.Vault, name string, r office.Rotation,
	now time.Time, h enrol.Handing) error {
	k, err := o.RotateClient(v, name, r, now, func(p *keys.Profile) error { return give(cmd, h, p) })
	switch {
	case errors.Is(err, office.ErrRevoked):
		return cli.Fail(err, "make a client with another name")
	case errors.Is(err, office.ErrTwoKeys):
		return cli.Fail(err, "rotate again after that, or end the previous key now: --force; if the token of the new "+
			"key was lost: --lost")
	case errors.Is(err, office.ErrNoLost):
		return cli.Fail(err, "make a new key: spa-fleet client rotate "+name)
	case err != nil:
		return err
	}
	if now.Before(k.Until) {
		cli.Note(cmd, "the previous key is valid until %s", moment(k.Until))
	} else {
		cli.Note(cmd, "the previous key ends on each gateway when the next bundle arrives")
	}
	a.publishNext(cmd, o)
	return nil
}
