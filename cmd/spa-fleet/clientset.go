package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/spa/fleet/office"
)

// A setting is how to change settings of a client.
type setting struct{ asJSON, dry bool }

func (a *app) clientSet() *cobra.Command {
	var s setting
	cmd := &cobra.Command{
		Use:   "set NAME KEY=VALUE...",
		Short: "Change settings of a client",
		Long: `Changes settings in clients/NAME.toml: all of them, or none if one has a mistake. KEY=
removes a setting, so that its default applies. Comments and all other lines stay as they
are. The change takes effect with the next "spa-fleet publish".

Keys: allow, gateways, from, deny, delegate, when (lists: a,b), widest4, widest6, expires,
max_for, require_source.`,
		Example: `  spa-fleet client set alice allow=ssh,web gateways=web7,db1
  spa-fleet client set alice expires=90d gateways=`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeSet,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validClient(args[0]); err != nil {
				return err
			}
			return a.setClient(cmd, s, args[0], slices.Clone(args[1:]))
		},
	}
	cli.JSONFlag(cmd, &s.asJSON)
	cmd.Flags().BoolVar(&s.dry, "dry-run", false, "report what would change, and change nothing")
	return cmd
}

func (a *app) setClient(cmd *cobra.Command, s setting, name string, args []string) error {
	for i, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		if key == "revoked" {
			return cli.Misuse(fmt.Errorf("set cannot change revoked"), "spa-fleet client revoke "+name)
		}
		if end, err := enrol.ParseExpires(value, time.Now()); key == "expires" && err == nil {
			args[i] = "expires=" + end.Format(time.RFC3339)
		}
	}
	return a.change(func(o *office.Office) error {
		t, changed, err := o.SetClient(name, args, s.dry)
		if err != nil {
			return err
		}
		if s.asJSON {
			return cli.JSON(cmd, struct {
				Changed bool     `json:"changed"`
				Client  string   `json:"client"`
				Keys    []string `json:"keys"`
			}{len(changed) > 0, name, append([]string{}, changed...)})
		}
		text := "unchanged"
		switch {
		case len(changed) > 0 && s.dry:
			text = "would be changed: " + strings.Join(changed, ", ")
		case len(changed) > 0:
			text = "changed: " + strings.Join(changed, ", ")
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", name, text)
		if state := enrol.State(&t.Client, time.Now()); state != "active" {
			cli.Warn(cmd, "%s cannot knock: %s", name, state)
		}
		if len(changed) > 0 && !s.dry {
			a.publishNext(cmd, o)
		}
		return nil
	})
}

// completeSet completes the name of a client, and then keys.
func (a *app) completeSet(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeClient(cmd, args, part)
	}
	var offers []string
	for _, key := range keys.TermsKeys() {
		if key != "version" && key != "revoked" {
			offers = append(offers, key+"=")
		}
	}
	return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
