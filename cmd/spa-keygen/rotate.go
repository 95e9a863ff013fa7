package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// rotation is a requested rotation of a client's key.
type rotation struct {
	overlap enrol.Overlap
	force   bool
	lost    bool
	handing enrol.Handing
}

func newRotate(dir *string) *cobra.Command {
	r := rotation{overlap: enrol.Overlap(keys.ClientOverlap)}
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a client a new key and print its enrolment token",
		Long: `Makes a new id and key for a client and prints the enrolment token that holds
them. The previous key stays valid for a while, so that the client keeps access until
the new token arrives; after that it gets no answer. A running spa-server accepts the new
key at once. The client's grants, services and limits do not change.

With --overlap 0 the previous key ends at once, and so do the client's grants, since
whoever has the lost key may have opened them. Sessions continue: "spa-server revoke
NAME --cut" ends them.

For a recovery client it prints a new page: the new key has all its uses. The previous key
ends at once, unless --overlap is given.

The client imports the token, which updates its host:

  alice$ spa-client import alice.token

At most two keys can be valid. While the previous one is, rotate refuses to make a third:
--force ends the previous one now, and --lost replaces the newer one, if its token was lost.`,
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
			if err := service.ValidName(args[0]); err != nil {
				return cli.Misuse(err, "list the clients: spa-keygen list")
			}
			return r.run(cmd, c, args[0])
		},
	}
	cmd.Flags().Var(&r.overlap, "overlap", "how long the previous key stays valid, such as 24h or 7d; 0 ends it at once")
	cmd.Flags().BoolVar(&r.force, "force", false, "end a previous key that is still valid")
	cmd.Flags().BoolVar(&r.lost, "lost", false, "replace the newest key, whose token was lost")
	cmd.MarkFlagsMutuallyExclusive("lost", "force")
	cmd.MarkFlagsMutuallyExclusive("lost", "overlap")
	r.handing.Flags(cmd)
	return cmd
}

func (r *rotation) run(cmd *cobra.Command, c *config.Config, name string) error {
	clients := filepath.Join(c.Dir, config.ClientsDir)
	now := time.Now()
	var before keys.Client
	after, err := keys.ChangeClient(clients, name, func(client *keys.Client) error {
		before = *client
		if err := r.forRecovery(cmd, client); err != nil {
			return err
		}
		if err := r.apply(client, clients, now); err != nil {
			return err
		}
		return addUses(c, client) // the directory is locked
	})
	if err != nil {
		return absent(err, name)
	}
	profile, err := profileOf(c, after)
	if err == nil {
		err = give(cmd, r.handing, after, profile)
	}
	if err != nil {
		err = fmt.Errorf("handing out the token: %w", err)
		if undoing := undo(clients, &before, after); undoing != nil {
			return errors.Join(err, fmt.Errorf("taking the new key back: %w", undoing))
		}
		return cli.Fail(err, "the key was not changed")
	}
	act := actOn(after)
	act.Previous = after.Previous.Until
	record(cmd, c.Dir, act)
	r.tell(cmd, after, now)
	return nil
}

// apply rotates the client's key, or returns why it must not be rotated.
func (r *rotation) apply(c *keys.Client, clients string, now time.Time) error {
	if !c.Revoked.IsZero() {
		return cli.Fail(fmt.Errorf("%s was revoked on %s, and a revoked client gets no new key", c.Name, moment(&c.Revoked)),
			fmt.Sprintf("to let %s in again: rm %s, then spa-keygen new %[1]s", c.Name,
				filepath.Join(clients, c.Name+keys.Suffix)))
	}
	alive := c.Previous != nil && now.Before(c.Previous.Until)
	switch {
	case r.lost && !alive:
		return cli.Fail(fmt.Errorf("%s has no lost token to replace: no previous key is valid", c.Name),
			"make a new key: spa-keygen rotate "+c.Name)
	case alive && !r.force && !r.lost:
		return cli.Fail(fmt.Errorf("%s already has a new key: the previous key (%s) is valid until %s, and at most "+
			"two keys can be", c.Name, c.Previous.ID, moment(&c.Previous.Until)),
			"rotate again after that, or end the previous key now with --force; if the token of the new key was lost: --lost")
	}
	if err := onlyFile(c, clients, "its key was not replaced"); err != nil {
		return err
	}
	if r.lost {
		c.ID, c.Key = keys.NewID(), keys.NewKey()
		return nil
	}
	c.Rotate(r.overlap.End(now))
	return nil
}

// onlyFile returns an error if another file has an id of the client: its key would count again once the
// client's own file no longer has it.
func onlyFile(c *keys.Client, clients, outcome string) error {
	copies, err := keys.Copies(clients, c)
	if err != nil || len(copies) == 0 {
		return err
	}
	return cli.Fail(fmt.Errorf("a key of %s is also in %s, so %s", c.Name, copies[0], outcome),
		"remove the copy, then run this again: rm "+copies[0])
}

// undo restores the previous keys, unless they have changed again.
func undo(clients string, before, after *keys.Client) error {
	_, err := keys.ChangeClient(clients, before.Name, func(c *keys.Client) error {
		if c.ID != after.ID {
			return fmt.Errorf("the keys of %s were changed by another program in the meantime", before.Name)
		}
		c.ID, c.Key, c.Previous = before.ID, before.Key, before.Previous
		return nil
	})
	return err
}

// tell reports what happened to the previous key.
func (r *rotation) tell(cmd *cobra.Command, c *keys.Client, now time.Time) {
	if now.Before(c.Previous.Until) {
		cli.Note(cmd, "the previous key (%s) is valid until %s", c.Previous.ID, moment(&c.Previous.Until))
	} else {
		cli.Note(cmd, "the previous key (%s) is no longer valid, and the grants of %s end; to end sessions too: "+
			"spa-server revoke %[2]s --cut", c.Previous.ID, c.Name)
	}
	if enrol.State(c, now) == "expired" {
		cli.Warn(cmd, "%s expired on %s, and a new key does not change that: set expires in its file",
			c.Name, moment(&c.Expires))
	}
}
