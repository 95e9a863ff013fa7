package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// ownCommands lists the keys of a client file that set does not change, and what to do instead.
var ownCommands = map[string]string{
	"version":  "it is the format of the file",
	"id":       "a new id and key: spa-keygen rotate NAME",
	"key":      "a new key: spa-keygen rotate NAME",
	"previous": "to end the previous key: spa-keygen rotate NAME --overlap 0 --force",
	"revoked":  "spa-keygen revoke NAME",
}

// A setting is what a command has changed, or would with dry.
type setting struct {
	asJSON, dry bool
}

func (s *setting) flags(cmd *cobra.Command) {
	cli.JSONFlag(cmd, &s.asJSON)
	cmd.Flags().BoolVar(&s.dry, "dry-run", false, "report what would change, and change nothing")
}

func newSet(dir *string) *cobra.Command {
	var s setting
	cmd := &cobra.Command{
		Use:   "set NAME KEY=VALUE...",
		Short: "Change settings of a client",
		Long: `Changes settings in clients/NAME.toml: all of them, or none if one has a mistake. A
running spa-server applies them at once. KEY= removes a setting, so that its default holds.
Comments and all other lines stay as they are.

Keys: allow, from, deny, delegate, when (lists: a,b), widest4, widest6, expires, max_for,
require_source, recovery.

It exits with 0 whether or not something had to be changed, and prints which: with --json
as "changed".`,
		Example: `  spa-keygen set alice allow=ssh,web max_for=1h
  spa-keygen set alice expires=2027-01-31 from=203.0.113.0/24,2001:db8::/48
  spa-keygen set alice when="mon-fri 08:00-18:00"
  spa-keygen set alice expires= from=         remove both`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completeSet(dir),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.run(cmd, *dir, args[0], args[1:])
		},
	}
	s.flags(cmd)
	return cmd
}

func (s *setting) run(cmd *cobra.Command, dir, name string, args []string) error {
	if err := service.ValidName(name); err != nil {
		return cli.Misuse(err, "list the clients: spa-keygen list")
	}
	args = slices.Clone(args)
	for i, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		section, _, _ := strings.Cut(key, ".")
		if instead, ok := ownCommands[section]; ok {
			return cli.Misuse(fmt.Errorf("set does not change %s", section), strings.ReplaceAll(instead, "NAME", name))
		}
		if end, err := enrol.ParseExpires(value, time.Now()); key == "expires" && err == nil {
			args[i] = "expires=" + end.Format(time.RFC3339)
		}
	}
	client, changed, err := keys.SetClient(filepath.Join(dir, config.ClientsDir), name, args, s.dry, allowed(dir))
	if err != nil {
		return unset(err, name)
	}
	return s.tell(cmd, dir, client, changed)
}

// unset adds a hint to an error of a change that was not made.
func unset(err error, name string) error {
	var exit *cli.Exit
	if err := absent(err, name); errors.As(err, &exit) {
		return err
	}
	return cli.Fail(err, "nothing was changed")
}

// allowed returns a check that the gateway has what the client is newly allowed to open.
func allowed(dir string) func(before, after *keys.Client) error {
	return func(before, after *keys.Client) error {
		if slices.Equal(before.Allow, after.Allow) {
			return nil
		}
		c, err := load(dir)
		if err != nil {
			return err
		}
		for _, entry := range after.Allow {
			if err := c.CheckAllow(entry); err != nil && !slices.Contains(before.Allow, entry) {
				return cli.Fail(fmt.Errorf("allow: %s: %w", entry, err), "services of this gateway: "+serviceNames(c))
			}
		}
		return nil
	}
}

// change is a change to a client as JSON has it.
type change struct {
	Changed bool     `json:"changed"`
	Client  string   `json:"client"`
	Created bool     `json:"created"`
	Keys    []string `json:"keys"`
}

// tell records and prints what has changed.
func (s *setting) tell(cmd *cobra.Command, dir string, c *keys.Client, changed []string) error {
	if len(changed) > 0 && !s.dry {
		act := actOn(c)
		act.Act, act.Settings = "set", changed
		record(cmd, dir, act)
	}
	if len(changed) > 0 {
		warnOf(cmd, dir, c)
	}
	return s.print(cmd, change{Changed: len(changed) > 0, Client: c.Name, Keys: append([]string{}, changed...)})
}

// warnOf warns of settings that have no effect.
func warnOf(cmd *cobra.Command, dir string, c *keys.Client) {
	if state := enrol.State(c, time.Now()); state != "active" {
		cli.Warn(cmd, "%s cannot knock: %s", c.Name, state)
	}
	warnUses(cmd, dir, c)
	if gateway, err := config.Load(dir); err == nil { // without it, the limits of the services are unknown
		warnShorter(cmd, gateway, c)
	}
}

func (s *setting) print(cmd *cobra.Command, c change) error {
	if s.asJSON {
		return cli.JSON(cmd, c)
	}
	would := ""
	if s.dry {
		would = "would be "
	}
	text := "unchanged"
	switch {
	case c.Created:
		text = would + "made"
	case c.Changed:
		text = would + "changed: " + strings.Join(c.Keys, ", ")
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", c.Client, text)
	return err
}

// completeSet completes the name of a client, and then keys.
func completeSet(dir *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return completeClient(dir)(cmd, args, part)
		}
		if list, ok := strings.CutPrefix(part, "allow="); ok {
			offers, how := completeAllow(dir)(cmd, args, list)
			for i := range offers {
				offers[i] = "allow=" + offers[i]
			}
			return offers, how
		}
		var offers []string
		for _, key := range keys.ClientKeys() {
			section, _, _ := strings.Cut(key, ".")
			if ownCommands[section] == "" {
				offers = append(offers, key+"=")
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}
