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
	"sallyport/cmd/internal/enrol"
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
	Name string `json:"name"`
	ID   string `json:"id"`
	enrol.Shown
	PreviousID    string     `json:"previous_id,omitempty"`
	PreviousUntil *time.Time `json:"previous_until,omitempty"`
	Recovery      *uses      `json:"recovery,omitempty"`

	limits []string // services that allow less than MaxFor
}

func describe(c *keys.Client, uses usesOf, now time.Time) description {
	d := description{Name: c.Name, ID: c.ID.String(), Shown: enrol.Show(c, now)}
	if c.Previous != nil {
		d.PreviousID, d.PreviousUntil = c.Previous.ID.String(), enrol.Known(c.Previous.Until)
	}
	d.Recovery = uses.of(c)
	return d
}

// condition returns the client's state, and until when or at which hours it is active.
func condition(c *keys.Client, uses usesOf, now time.Time) string {
	text := enrol.State(c, now)
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
