package main

import (
	"fmt"
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

func newShow(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a client, without its key",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient(dir),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := read(*dir, args[0])
			if err != nil {
				return err
			}
			d := describe(c, readUses(*dir), time.Now())
			if gateway, err := config.Load(*dir); err == nil { // without it, show only the client's own
				d.limits = shorter(gateway, c)
			}
			if asJSON {
				return cli.JSON(cmd, d)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			for _, row := range d.rows() {
				fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
			}
			return w.Flush()
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// read reads the file of the named client.
func read(dir, name string) (*keys.Client, error) {
	if err := service.ValidName(name); err != nil {
		return nil, cli.Misuse(err, "list the clients: spa-keygen list")
	}
	c, err := keys.ReadClient(filepath.Join(dir, config.ClientsDir, name+".toml"))
	return c, absent(err, name)
}

// rows returns what to show, as names and values.
func (d description) rows() [][2]string {
	rows := [][2]string{
		{"name", d.Name}, {"id", d.ID}, {"state", d.State}, {"allow", strings.Join(d.Allow, ", ")},
		{"require_source", fmt.Sprint(d.RequireSource)},
	}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, [2]string{name, value})
		}
	}
	add("from", strings.Join(d.From, ", "))
	add("deny", strings.Join(d.Deny, ", "))
	if d.Widest4 > 0 {
		add("widest4", fmt.Sprint(d.Widest4))
	}
	if d.Widest6 > 0 {
		add("widest6", fmt.Sprint(d.Widest6))
	}
	add("delegate", strings.Join(d.Delegate, ", "))
	add("when", strings.Join(d.When, ", "))
	maxFor := d.MaxFor
	if len(d.limits) > 0 {
		maxFor += " (limited by the services: " + strings.Join(d.limits, ", ") + ")"
	}
	add("max_for", maxFor)
	add("expires", moment(d.Expires))
	add("revoked", moment(d.Revoked))
	if d.Recovery != nil {
		add("recovery", d.Recovery.String())
	}
	add("previous id", d.PreviousID)
	add("previous until", moment(d.PreviousUntil))
	return rows
}

func moment(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}
