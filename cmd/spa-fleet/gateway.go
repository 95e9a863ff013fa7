package main

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys/place"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/office"
)

func (a *app) gatewayCommand() *cobra.Command {
	return group("gateway", "Add, list and retire gateways", a.gatewayAdd(), a.gatewayList(), a.gatewayRetire())
}

func (a *app) gatewayAdd() *cobra.Command {
	var yes bool
	var site office.Site
	cmd := &cobra.Command{
		Use:   "add NAME [FILE]",
		Short: "Add a gateway",
		Long: `Adds a gateway. FILE, or standard input, has the line that "spa-server init --fleet" printed
there. The command prints another one to run on the gateway, which then trusts this office.
An existing gateway gets the address and the key in its new line.

--site is for gateways that share an address (VRRP, anycast, ECMP): its members. Clients
know only the site's name, and find it at that name in the fleet's domain or at
--site-address. Tokens made before a gateway joined its site do not reach it.`,
		Example: `  spa-fleet gateway add web7 web7.line
  ssh web7 sudo spa-server init --fleet | spa-fleet gateway add web7
  spa-fleet gateway add lb1 lb1.line --site www --site-address 192.0.2.80`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := readRequest(cmd, args)
			if err != nil {
				return err
			}
			if site.Name == "" && site.Address != "" {
				return cli.Misuse(errors.New("--site-address is for gateways with a site"), "name it too: --site SITE")
			}
			return a.addGateway(cmd, r, site, yes)
		},
	}
	yesFlag(cmd, &yes)
	cmd.Flags().StringVar(&site.Name, "site", "", "`SITE` with which it shares its address")
	cmd.Flags().StringVar(&site.Address, "site-address", "", "`ADDRESS` of the site (default SITE.domain)")
	cmd.RegisterFlagCompletionFunc("site", a.completeSite)
	return cmd
}

func yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVar(yes, "yes", false, "do not ask for confirmation")
}

// readRequest reads the gateway's line.
func readRequest(cmd *cobra.Command, args []string) (fleet.Request, error) {
	text, err := readText(cmd, args[1:])
	if err != nil {
		return fleet.Request{}, err
	}
	r, err := fleet.ParseRequest(text)
	if err != nil {
		return fleet.Request{}, cli.Fail(err, "print it again on the gateway: spa-server init --fleet")
	}
	if r.Name != args[0] {
		return fleet.Request{}, cli.Fail(fmt.Errorf("this is the line of gateway %s, not of %s", r.Name, args[0]),
			"the gateway's name is in its server.toml: fleet.gateway, or name")
	}
	return r, nil
}

// readText reads a file, or standard input without one.
func readText(cmd *cobra.Command, files []string) (string, error) {
	const limit = 1 << 20
	if len(files) > 0 && files[0] != "-" {
		text, err := place.ReadFile(files[0], limit)
		return string(text), err
	}
	text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), limit))
	return string(text), err
}

func (a *app) addGateway(cmd *cobra.Command, r fleet.Request, site office.Site, yes bool) error {
	add := func(replace bool) error {
		// With the vault: the gateway must not trust a key that an attacker wrote into office.toml.
		return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
			if err := o.Signs(v); err != nil {
				return err
			}
			known := o.Gateway(r.Name)
			g, err := o.AddGateway(r, site, replace)
			if errors.Is(err, office.ErrMoves) {
				return cli.Fail(err, "retire it, and add it under another name")
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "added gateway %s; run this on %[1]s, as root:\n\n  %s\n\n", g.Name,
				pinning(o, g))
			if known != nil && known.Place() != g.Place() {
				cli.Warn(cmd, "clients with tokens from before cannot knock at %s by that name: now it is %s", g.Name, g.Place())
			}
			if g.Site.Name != "" {
				cli.Note(cmd, "%s also needs spa-fleet agent, with etcd and share in agent.toml: %s has an address that gateways "+
					"share", g.Name, g.Site.Name)
			}
			a.publishNext(cmd, o)
			return nil
		})
	}
	err := add(yes)
	if errors.Is(err, office.ErrReplaces) {
		question := fmt.Sprintf("Gateway %s has another key in this office, or is retired. If it was stolen, give the "+
			"new one another name: the thief has the clients' keys for this name.\nWas the gateway set up again, and "+
			"is this its line?", r.Name)
		if err := sure(cmd, false, question); err != nil {
			return err
		}
		err = add(true)
	}
	return err
}

// pinning returns the command with which a gateway trusts the office.
func pinning(o *office.Office, g *office.Gateway) string {
	return fmt.Sprintf("spa-server set fleet.id=%s fleet.office=%s fleet.gateway=%s", o.Fleet,
		base64.StdEncoding.EncodeToString(o.Key), g.Name)
}

func (a *app) gatewayList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the gateways",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.load()
			if err != nil {
				return err
			}
			return printGateways(cmd, o, asJSON)
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// gateway is a gateway as JSON has it.
type gateway struct {
	Name    string     `json:"name"`
	Address string     `json:"address"`
	Site    string     `json:"site,omitempty"` // with which it shares the server id
	Server  string     `json:"server_id"`
	Retired *time.Time `json:"retired,omitempty"`
}

func printGateways(cmd *cobra.Command, o *office.Office, asJSON bool) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tADDRESS\t"+siteColumn(o, "SITE")+"STATE")
	for _, g := range o.Gateways {
		state := "active"
		if !g.Retired.IsZero() {
			state = "retired since " + moment(g.Retired)
		}
		if asJSON {
			d := gateway{g.Name, g.Address, g.Site.Name, o.Fleet.Server(g.Place()).String(), enrol.Known(g.Retired)}
			if err := cli.JSON(cmd, d); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s%s\n", g.Name, g.Address, siteColumn(o, g.Site.Name), state)
	}
	if asJSON {
		return nil
	}
	return w.Flush()
}

// siteColumn returns the column of a table with the site of a gateway; nothing if no gateway has one.
func siteColumn(o *office.Office, site string) string {
	if !slices.ContainsFunc(o.Gateways, func(g *office.Gateway) bool { return g.Site.Name != "" }) {
		return ""
	}
	return cmp.Or(site, "-") + "\t"
}

func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func (a *app) gatewayRetire() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "retire NAME",
		Short: "Make no more bundles for a gateway",
		Long: `Marks a gateway as retired: it gets no more bundles, and "spa-fleet publish" removes its
last one. The gateway itself does not change: with the bundle that it has, it lets clients
in until it is switched off. The keys in that bundle work at no other gateway, unless it
shares an address: then the other members of its site have the same keys. Existing tokens
keep the gateway's name.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGateway,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := a.load()
			if err != nil {
				return err
			}
			if g := o.Gateway(args[0]); g != nil {
				if err := sure(cmd, yes, retiring(o, g)); err != nil {
					return err
				}
			}
			return a.change(func(o *office.Office) error {
				g, err := o.Retire(args[0], time.Now())
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is retired\n", g.Name)
				cli.Note(cmd, "now switch %s off, or run there: spa-server teardown; until then it lets its clients in",
					g.Name)
				if site := g.Site.Name; site != "" && len(o.Members(site)) <= 1 { // o is as it was before
					cli.Warn(cmd, "site %s has no gateway any more: clients cannot knock there", site)
				}
				a.publishNext(cmd, o)
				return nil
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}

// retiring returns the question whether to retire a gateway.
func retiring(o *office.Office, g *office.Gateway) string {
	question := fmt.Sprintf("Gateway %s will get no more bundles, so it will let revoked clients in until it is "+
		"switched off.", g.Name)
	switch site := g.Site.Name; {
	case site == "":
	case len(o.Members(site)) > 1:
		question += fmt.Sprintf(" If it was stolen, the thief has the keys of all gateways of site %s: set the others up "+
			"for a new site instead.", site)
	default:
		question += fmt.Sprintf(" It is the last gateway of site %s.", site)
	}
	return question + " Retire it?"
}
