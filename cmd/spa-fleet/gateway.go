package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
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
	cmd := &cobra.Command{
		Use:   "add NAME [FILE]",
		Short: "Add a gateway",
		Long: `Adds a gateway. FILE, or standard input, has the line that "spa-server init --fleet" printed
there. The command prints another one to run on the gateway, which then trusts this office.
An existing gateway gets the address and the key in its new line.`,
		Example: `  spa-fleet gateway add web7 web7.line
  ssh web7 sudo spa-server init --fleet | spa-fleet gateway add web7`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := readRequest(cmd, args)
			if err != nil {
				return err
			}
			return a.addGateway(cmd, r, yes)
		},
	}
	yesFlag(cmd, &yes)
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

func (a *app) addGateway(cmd *cobra.Command, r fleet.Request, yes bool) error {
	add := func(replace bool) error {
		// With the vault: the gateway must not trust a key that an attacker wrote into office.toml.
		return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
			if err := o.Signs(v); err != nil {
				return err
			}
			g, err := o.AddGateway(r, replace)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "added gateway %s; run this on %[1]s, as root:\n\n  %s\n\n", g.Name,
				pinning(o, g))
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
	Server  string     `json:"server_id"`
	Retired *time.Time `json:"retired,omitempty"`
}

func printGateways(cmd *cobra.Command, o *office.Office, asJSON bool) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tADDRESS\tSTATE")
	for _, g := range o.Gateways {
		state := "active"
		if !g.Retired.IsZero() {
			state = "retired since " + moment(g.Retired)
		}
		if asJSON {
			d := gateway{g.Name, g.Address, o.Fleet.Server(g.Name).String(), enrol.Known(g.Retired)}
			if err := cli.JSON(cmd, d); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", g.Name, g.Address, state)
	}
	if asJSON {
		return nil
	}
	return w.Flush()
}

func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func (a *app) gatewayRetire() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "retire NAME",
		Short: "Make no more bundles for a gateway",
		Long: `Marks a gateway as retired: it gets no more bundles, and "spa-fleet publish" removes its
last one. The gateway itself does not change: with the bundle that it has, it lets clients
in until it is switched off. The keys in that bundle work at no other gateway. Existing
tokens keep the gateway's name.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeGateway,
		RunE: func(cmd *cobra.Command, args []string) error {
			question := fmt.Sprintf("Gateway %s will get no more bundles, so it will let revoked clients in until it "+
				"is switched off. Retire it?", args[0])
			o, err := a.load()
			if err == nil && o.Gateway(args[0]) != nil {
				err = sure(cmd, yes, question)
			}
			if err != nil {
				return err
			}
			return a.change(func(o *office.Office) error {
				g, err := o.Retire(args[0], time.Now())
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is retired\n", g.Name)
				cli.Note(cmd, "now switch %s off, or run there: spa-server teardown; until then it lets its clients in",
					g.Name)
				a.publishNext(cmd, o)
				return nil
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}
