package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/server"
	"sallyport/spa/server/acts"
	"sallyport/spa/server/control"
)

// identity lists the keys that set does not change, and why.
var identity = map[string]string{
	"version":   "it is the format of the file",
	"server_id": "clients have it in their tokens: with another one the gateway ignores them all",
}

func newSet(dir *string) *cobra.Command {
	var asJSON, dry bool
	cmd := &cobra.Command{
		Use:   "set SECTION.KEY=VALUE...",
		Short: "Change settings in server.toml",
		Long: `Changes settings in server.toml: all of them, or none if the server would refuse the
result, or a client's file names a service that would be gone. KEY= removes a setting, so
that its default holds; service.NAME= removes a service. Comments and all other lines stay
as they are. A list is written a,b or as in the file: ["a", "b"].

A running server goes on as before until "spa-server reload", or until a restart where a
setting needs one: set prints which.

It exits with 0 whether or not something had to be changed, and prints which: with --json
as "changed", and as "apply" what a running server needs: "reload" or "restart".`,
		Example: `  spa-server set window=20s firewall.closed=reject
  spa-server set service.web.ports=tcp/80,tcp/443 service.web.for=1m
  spa-server set 'knock_ports=[62201, { port = 443, shared = true }]'
  spa-server set window= service.web=         the default, and no such service`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeSet(dir),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				key, _, _ := strings.Cut(arg, "=")
				if why, ok := identity[key]; ok {
					return cli.Misuse(fmt.Errorf("set does not change %s", key), why)
				}
			}
			c, err := config.Set(*dir, args, dry, stranded)
			if err != nil {
				return unset(err)
			}
			if len(c.Keys) > 0 && !dry {
				act := control.Act{Act: "set", Program: "spa-server", Settings: c.Keys}
				if err := acts.RecordAs(cmd.Context(), c.Was, cli.Version(), act); err != nil {
					cli.Warn(cmd, "the audit log has no line of this: %v", err)
				}
			}
			return printSet(cmd, c, asJSON, dry)
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "report what would change, and change nothing")
	return cmd
}

// unset adds a hint to an error of a change that was not made.
func unset(err error) error {
	var exit *cli.Exit
	if err := loadError(err); errors.As(err, &exit) {
		return err
	}
	return cli.Fail(err, "nothing was changed")
}

// stranded returns an error if clients are allowed something that would be gone.
func stranded(c *config.Change) error {
	clients, _ := keys.LoadRegistry(filepath.Join(c.Was.Dir, config.ClientsDir)) // files with mistakes allow nothing
	var lost []error
	var first *keys.Client
	for _, client := range clients.Clients() {
		for _, entry := range client.Allow {
			if c.Was.CheckAllow(entry) == nil && c.Is.CheckAllow(entry) != nil {
				lost = append(lost, fmt.Errorf("%s may open %s, which would be gone", client.Name, entry))
				if first == nil {
					first = client
				}
			}
		}
	}
	if first == nil {
		return nil
	}
	return cli.Fail(errors.Join(lost...), fmt.Sprintf("nothing was changed; first give it another list, such as: "+
		"spa-keygen set %s 'allow=%s'", first.Name, remaining(c.Is, first)))
}

// remaining returns what of a client's list the gateway will still have.
func remaining(c *config.Config, client *keys.Client) string {
	left := slices.DeleteFunc(slices.Clone(client.Allow), func(entry string) bool { return c.CheckAllow(entry) != nil })
	if len(left) == 0 {
		return "[]"
	}
	return strings.Join(left, ",")
}

// settingsChange is a change of server.toml as JSON has it.
type settingsChange struct {
	Changed bool     `json:"changed"`
	Keys    []string `json:"keys"`
	Apply   string   `json:"apply"` // "reload", "restart", or "" if nothing has changed
}

func printSet(cmd *cobra.Command, c *config.Change, asJSON, dry bool) error {
	change := settingsChange{Changed: len(c.Keys) > 0, Keys: append([]string{}, c.Keys...)}
	restart := server.NeedRestart(c.Was, c.Is)
	switch {
	case len(restart) > 0:
		change.Apply = "restart"
	case change.Changed:
		change.Apply = "reload"
	}
	if asJSON {
		return cli.JSON(cmd, change)
	}
	text := "unchanged"
	switch {
	case change.Changed && dry:
		text = "would be changed: " + strings.Join(c.Keys, ", ")
	case change.Changed:
		text = "changed: " + strings.Join(c.Keys, ", ")
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", config.FileName, text); err != nil || dry {
		return err
	}
	switch change.Apply {
	case "restart":
		cli.Note(cmd, "a running server needs a restart for %s: systemctl restart spa-server (grants and sessions "+
			"continue)", strings.Join(restart, ", "))
	case "reload":
		cli.Note(cmd, "a running server takes it with: spa-server reload --config %s", quote.Shell(c.Is.Dir))
	}
	return nil
}

// completeSet completes keys, those of the services that there are.
func completeSet(dir *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
		const how = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		if strings.Contains(part, "=") {
			return nil, how
		}
		names := []string{"NAME"}
		if c, err := config.Load(*dir); err == nil && len(c.Services) > 0 {
			names = nil
			for _, s := range c.Services {
				names = append(names, s.Name)
			}
		}
		var offers []string
		for _, name := range names {
			for _, key := range config.Keys(name) {
				if identity[key] == "" && !slices.Contains(offers, key+"=") {
					offers = append(offers, key+"=")
				}
			}
		}
		return offers, how
	}
}
