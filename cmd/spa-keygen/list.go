package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

func newList(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clients",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			registry, problems := keys.LoadRegistry(filepath.Join(*dir, config.ClientsDir))
			if err := errors.Join(problems...); registry.Len() == 0 && errors.Is(err, fs.ErrPermission) {
				return denied(err)
			}
			if err := printList(cmd, registry.Clients(), readUses(*dir), asJSON); err != nil {
				return err
			}
			if len(problems) > 0 {
				return cli.Fail(errors.Join(problems...), "these clients cannot knock until their files are fixed")
			}
			return nil
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func printList(cmd *cobra.Command, clients []*keys.Client, uses usesOf, asJSON bool) error {
	now := time.Now()
	if asJSON {
		for _, c := range clients {
			if err := cli.JSON(cmd, describe(c, uses, now)); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tALLOW\tSTATE")
	for _, c := range clients {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Name, c.ID, strings.Join(c.Allow, ","), condition(c, uses, now))
	}
	return w.Flush()
}

// description is what may be shown about a client: everything but its key.
type description struct {
	Name          string     `json:"name"`
	ID            string     `json:"id"`
	State         string     `json:"state"`
	Allow         []string   `json:"allow"`
	From          []string   `json:"from,omitempty"`
	Deny          []string   `json:"deny,omitempty"`
	Widest4       int        `json:"widest4,omitempty"`
	Widest6       int        `json:"widest6,omitempty"`
	Delegate      []string   `json:"delegate,omitempty"`
	When          []string   `json:"when,omitempty"`
	MaxFor        string     `json:"max_for,omitempty"`
	RequireSource bool       `json:"require_source"`
	Expires       *time.Time `json:"expires,omitempty"`
	Revoked       *time.Time `json:"revoked,omitempty"`
	PreviousID    string     `json:"previous_id,omitempty"`
	PreviousUntil *time.Time `json:"previous_until,omitempty"`
	Recovery      *uses      `json:"recovery,omitempty"`

	limits []string // services that allow less than MaxFor
}

func describe(c *keys.Client, uses usesOf, now time.Time) description {
	d := description{
		Name: c.Name, ID: c.ID.String(), State: state(c, now), Allow: c.Allow,
		RequireSource: c.RequireSource, Expires: known(c.Expires), Revoked: known(c.Revoked),
	}
	for _, prefix := range c.From {
		d.From = append(d.From, prefix.String())
	}
	for _, prefix := range c.Deny {
		d.Deny = append(d.Deny, prefix.String())
	}
	d.Widest4, d.Widest6 = c.Widest4, c.Widest6
	for _, network := range c.Delegate {
		d.Delegate = append(d.Delegate, service.NetworkText(network))
	}
	if c.MaxFor > 0 {
		d.MaxFor = service.FormatDuration(c.MaxFor)
	}
	if len(c.When) > 0 {
		d.When = service.SpanTexts(c.When)
	}
	if c.Previous != nil {
		d.PreviousID, d.PreviousUntil = c.Previous.ID.String(), known(c.Previous.Until)
	}
	d.Recovery = uses.of(c)
	return d
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// condition returns the client's state, and until when or at which hours it is active.
func condition(c *keys.Client, uses usesOf, now time.Time) string {
	text := state(c, now)
	if text != "active" {
		return text
	}
	if !c.Expires.IsZero() {
		text += " until " + moment(&c.Expires)
	}
	if len(c.When) > 0 {
		text += ", " + strings.Join(service.SpanTexts(c.When), ", ")
	}
	if left := uses.of(c); left != nil {
		text += ", recovery: " + left.String()
	}
	return text
}

// state returns in a word whether the client can knock.
func state(c *keys.Client, now time.Time) string {
	switch {
	case !c.Revoked.IsZero():
		return "revoked"
	case !c.Expires.IsZero() && !now.Before(c.Expires):
		return "expired"
	}
	return "active"
}
