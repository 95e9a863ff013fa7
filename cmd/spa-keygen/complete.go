package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/config"
)

func completeClient(dir *string) cobra.CompletionFunc {
	return cli.CompleteFirst(func() []string { return cli.ClientNames(filepath.Join(*dir, config.ClientsDir)) })
}

// completeAllow completes the last entry of a list with the gateway's services that are not in it yet.
func completeAllow(dir *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
		c, err := config.Load(*dir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		before := part[:strings.LastIndexByte(part, ',')+1]
		var offers []string
		for _, service := range c.Services {
			if !strings.Contains(","+before, ","+service.Name+",") {
				offers = append(offers, before+service.Name)
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}
