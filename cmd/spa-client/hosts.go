package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// hostJSON is a host as --json prints it. It contains no key.
type hostJSON struct {
	Name       string              `json:"name"`
	Address    string              `json:"address"` // of a fleet: empty
	KnockPorts []uint16            `json:"knock_ports"`
	Client     string              `json:"client"`
	Services   map[string][]string `json:"services"`
	Receipts   bool                `json:"receipts"`
	Source     string              `json:"source"`
	Locked     bool                `json:"locked,omitempty"`
	Fleet      string              `json:"fleet_id,omitempty"`
	Domain     string              `json:"domain,omitempty"`
	Gateways   map[string]string   `json:"gateways,omitempty"` // the addresses of those that the profile lists
}

func (a *app) hostsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "hosts",
		Short: "List the hosts that can be knocked on",
		Long: `Hosts lists the hosts: name, address, client, services. Below a fleet are the gateways that
its profile lists; any other gateway of the fleet is at its name in the fleet's domain.`,
		Example: "  spa-client hosts\n  spa-client hosts --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			profiles, err := a.profiles()
			if len(profiles) == 0 && err == nil {
				cli.Note(cmd, "no host is known yet: spa-client import FILE adds one")
			}
			print := printHosts
			if asJSON {
				print = printHostsJSON
			}
			return errors.Join(print(cmd, profiles), err)
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// profiles reads all hosts. It returns those that can be read, and an error that joins the others' errors.
func (a *app) profiles() ([]*keys.StoredProfile, error) {
	names, err := a.names()
	if err != nil {
		return nil, err
	}
	var profiles []*keys.StoredProfile
	var bad error
	for _, name := range names {
		p, err := a.stored(name)
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		profiles = append(profiles, p)
	}
	return profiles, bad
}

func printHosts(cmd *cobra.Command, profiles []*keys.StoredProfile) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	for _, p := range profiles {
		state := ""
		if p.Locked() {
			state = "\tlocked"
		}
		services := strings.Join(serviceNames(&p.Profile), ",")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s%s\n", p.Name, whereis(&p.Profile), p.Client, services, state)
		addresses := listed(&p.Profile)
		for _, name := range gatewayNames(&p.Profile) {
			fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s%s\n", p.Name, name, addresses[name], p.Client, services, state)
		}
	}
	return w.Flush()
}

func printHostsJSON(cmd *cobra.Command, profiles []*keys.StoredProfile) error {
	for _, p := range profiles {
		out := hostJSON{Name: p.Name, Address: p.Address, KnockPorts: p.KnockPorts, Client: p.Client,
			Services: p.Services, Receipts: p.Receipts, Source: cmp.Or(p.Source, "auto"), Locked: p.Locked()}
		if p.IsFleet() {
			out.Address, out.Domain, out.Fleet, out.Gateways = "", p.Address, p.Fleet.String(), listed(&p.Profile)
		}
		if err := cli.JSON(cmd, out); err != nil {
			return err
		}
	}
	return nil
}
