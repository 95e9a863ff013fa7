package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/fleet/office"
)

// completeIn offers the names in a directory of the office for the first argument.
func (a *app) completeIn(dir string) cobra.CompletionFunc {
	return cli.CompleteFirst(func() []string { return cli.ClientNames(filepath.Join(a.dir, dir)) })
}

func (a *app) completeGateway(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	return a.completeIn("gateways")(cmd, args, part)
}

func (a *app) completeClient(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	return a.completeIn("clients")(cmd, args, part)
}

func (a *app) completeAdmin(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	return a.completeIn("admins")(cmd, args, part)
}

func (a *app) completeSite(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	o, err := office.Load(a.dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	sites := make(map[string]bool)
	for _, g := range o.Gateways {
		if g.Site.Name != "" {
			sites[g.Site.Name] = true
		}
	}
	return sorted(sites), cobra.ShellCompDirectiveNoFileComp
}
