package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/spa/config"
)

// rotation is a client's new key, as it was asked for.
type rotation struct {
	overlap overlapFlag
	force   bool
	lost    bool
	handing handing
}

func newRotate(dir *string) *cobra.Command {
	r := rotation{overlap: overlapFlag(7 * day)}
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a client a new key and print its enrolment token",
		Long: `Makes a new id and key for a client and prints the enrolment token that holds
them. The key of before stays good beside it for a while, so that nobody is shut
out before the new token has arrived; after that it is met with silence. With
--overlap 0 it ends at once. A running spa-server takes the new key at once. What
the client has open, what it may open and its limits stay as they are.

The client imports the token over the host that it has:

  alice$ spa-client import alice.token

While the key of before is good a client is not rotated again, because there are no
more than two keys: --force ends the older one now, and --lost replaces the newer one,
whose token nobody has.`,
		Example: `  spa-keygen rotate alice
  spa-keygen rotate alice --overlap 24h --out alice.token
  spa-keygen rotate alice --qr
  spa-keygen rotate alice --overlap 0          the laptop was stolen`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient(dir),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := load(*dir)
			if err != nil {
				return err
			}
			if err := keys.ValidName(args[0]); err != nil {
				return cli.Misuse(err, "spa-keygen list shows the names")
			}
			return r.run(cmd, c, args[0])
		},
	}
	cmd.Flags().Var(&r.overlap, "overlap", "how long the key of before stays good, such as 24h or 7d; 0 ends it at once")
	cmd.Flags().BoolVar(&r.force, "force", false, "end a key of before that is still good")
	cmd.Flags().BoolVar(&r.lost, "lost", false, "the token of the last rotation was lost: make another in its place")
	cmd.MarkFlagsMutuallyExclusive("lost", "force")
	cmd.MarkFlagsMutuallyExclusive("lost", "overlap")
	r.handing.flags(cmd)
	return cmd
}

func (r *rotation) run(cmd *cobra.Command, c *config.Config, name string) error {
	clients := filepath.Join(c.Dir, config.ClientsDir)
	now := time.Now()
	var before keys.Client
	after, err := keys.ChangeClient(clients, name, func(client *keys.Client) error {
		before = *client
		return r.apply(client, now)
	})
	if err != nil {
		return absent(err, name)
	}
	profile, err := profileOf(c, after)
	if err == nil {
		err = r.handing.give(cmd, name, profile.Token())
	}
	if err != nil {
		err = fmt.Errorf("handing out the token: %w", err)
		if undoing := undo(clients, &before, after); undoing != nil {
			return errors.Join(err, fmt.Errorf("taking the new key back: %w", undoing))
		}
		return cli.Fail(err, "the key was not changed")
	}
	r.tell(cmd, after, now)
	return nil
}

// apply changes the client, or says why it is not to be changed.
func (r *rotation) apply(c *keys.Client, now time.Time) error {
	if !c.Revoked.IsZero() {
		return cli.Fail(fmt.Errorf("%s was revoked on %s, and a revoked client gets no new key", c.Name, moment(&c.Revoked)),
			fmt.Sprintf("to let %s in again, move its file away and make it anew with spa-keygen new", c.Name))
	}
	alive := c.Previous != nil && now.Before(c.Previous.Until)
	switch {
	case r.lost && !alive:
		return cli.Fail(fmt.Errorf("there is no lost token of %s to replace: no key of before is good any more", c.Name), "spa-keygen rotate "+c.Name+" makes a new key")
	case r.lost:
		c.ID, c.Key = keys.NewID(), keys.NewKey()
		return nil
	case alive && !r.force:
		return cli.Fail(fmt.Errorf("%s was rotated before, and the key of then (%s) is good until %s", c.Name, c.Previous.ID, moment(&c.Previous.Until)),
			"rotate again after that; --force ends that key now, --lost replaces the newer one instead, if nobody has its token")
	}
	c.Rotate(r.overlap.end(now))
	return nil
}

// undo puts the keys of before back, unless somebody has changed them again.
func undo(clients string, before, after *keys.Client) error {
	_, err := keys.ChangeClient(clients, before.Name, func(c *keys.Client) error {
		if c.ID != after.ID {
			return fmt.Errorf("the keys of %s were changed by somebody else meanwhile", before.Name)
		}
		c.ID, c.Key, c.Previous = before.ID, before.Key, before.Previous
		return nil
	})
	return err
}

// tell says beside the token what has become of the key of before.
func (r *rotation) tell(cmd *cobra.Command, c *keys.Client, now time.Time) {
	if now.Before(c.Previous.Until) {
		cli.Note(cmd, "the key of before (%s) stays good until %s", c.Previous.ID, moment(&c.Previous.Until))
	} else {
		cli.Note(cmd, "the key of before (%s) opens nothing any more", c.Previous.ID)
	}
	if state(c, now) == "expired" {
		cli.Warn(cmd, "%s expired on %s and stays it: its file says until when it may knock", c.Name, moment(&c.Expires))
	}
}
