package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
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
	Name string `json:"name"`
	enrol.Shown
	Gateways []string `json:"gateways,omitempty"` // none: all
}

func printClients(cmd *cobra.Command, o *office.Office, asJSON bool) error {
	now := time.Now()
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tALLOW\tON\tSTATE")
	for _, c := range o.Clients {
		if asJSON {
			if err := cli.JSON(cmd, description{c.Name, enrol.Show(&c.Terms.Client, now), c.Gateways}); err != nil {
				return err
			}
			continue
		}
		on, text := "all", enrol.State(&c.Terms.Client, now)
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
