package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/fleet/office"
)

func (a *app) clientCommand() *cobra.Command {
	return group("client", "Make, change and revoke clients", a.clientNew(), a.clientSet(), a.clientRotate(),
		a.clientRevoke(), a.clientList())
}

func validClient(name string) error {
	if err := service.ValidName(name); err != nil {
		return cli.Misuse(err, "choose a name such as alice or build-host-2")
	}
	return nil
}

func (a *app) clientList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clients",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.load()
			if err != nil {
				return err
			}
			return printClients(cmd, o, asJSON)
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// description is a client as JSON has it.
type description struct {
	Name          string     `json:"name"`
	State         string     `json:"state"`
	Allow         []string   `json:"allow"`
	Gateways      []string   `json:"gateways,omitempty"` // none: all
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
}

func describe(c *keys.Terms, now time.Time) description {
	d := description{Name: c.Name, State: state(c, now), Allow: c.Allow, Gateways: c.Gateways, Widest4: c.Widest4,
		Widest6: c.Widest6, RequireSource: c.RequireSource, Expires: known(c.Expires), Revoked: known(c.Revoked)}
	for _, prefix := range c.From {
		d.From = append(d.From, prefix.String())
	}
	for _, prefix := range c.Deny {
		d.Deny = append(d.Deny, prefix.String())
	}
	for _, network := range c.Delegate {
		d.Delegate = append(d.Delegate, service.NetworkText(network))
	}
	if c.MaxFor > 0 {
		d.MaxFor = service.FormatDuration(c.MaxFor)
	}
	if len(c.When) > 0 {
		d.When = service.SpanTexts(c.When)
	}
	return d
}

// state returns in a word whether the client can knock.
func state(c *keys.Terms, now time.Time) string {
	switch {
	case !c.Revoked.IsZero():
		return "revoked"
	case !c.Expires.IsZero() && !now.Before(c.Expires):
		return "expired"
	}
	return "active"
}

func printClients(cmd *cobra.Command, o *office.Office, asJSON bool) error {
	now := time.Now()
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tALLOW\tON\tSTATE")
	for _, c := range o.Clients {
		if asJSON {
			if err := cli.JSON(cmd, describe(c.Terms, now)); err != nil {
				return err
			}
			continue
		}
		on, text := "all", state(c.Terms, now)
		if len(c.Gateways) > 0 {
			on = strings.Join(c.Gateways, ",")
		}
		if text == "active" && !c.Expires.IsZero() {
			text += " until " + moment(c.Expires)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Name, strings.Join(c.Allow, ","), on, text)
	}
	if asJSON {
		return nil
	}
	return w.Flush()
}

// completeAllow completes the last entry of a list with the fleet's services that are not in it yet.
func (a *app) completeAllow(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
	o, err := office.Load(a.dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeList(part, sorted(o.Services))
}

func (a *app) completeOn(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
	o, err := office.Load(a.dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeList(part, sorted(o.Addresses()))
}

func completeList(part string, names []string) ([]string, cobra.ShellCompDirective) {
	before := part[:strings.LastIndexByte(part, ',')+1]
	var offers []string
	for _, name := range names {
		if !slices.Contains(strings.Split(before, ","), name) {
			offers = append(offers, before+name)
		}
	}
	return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
