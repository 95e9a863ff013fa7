package main

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// shorter returns the services whose maximum is less than the client's max_for, and so limits it.
func shorter(c *config.Config, client *keys.Client) []string {
	var found []string
	for _, entry := range client.Allow {
		if most, ok := mostFor(c, entry); ok && client.MaxFor > most {
			found = append(found, entry+" "+service.FormatDuration(most))
		}
	}
	return found
}

// warnShorter warns if services limit the client's max_for.
func warnShorter(cmd *cobra.Command, c *config.Config, client *keys.Client) {
	if limits := shorter(c, client); len(limits) > 0 {
		cli.Warn(cmd, "max_for %s exceeds what the services allow, and they limit it: %s; raise max_for in %s if that is "+
			"intended", service.FormatDuration(client.MaxFor), strings.Join(limits, ", "),
			filepath.Join(c.Dir, config.FileName))
	}
}

// mostFor returns the longest time for which any client may open an entry of allow. If several services share the port
// it is the shortest of theirs, as for the policy.
func mostFor(c *config.Config, entry string) (most time.Duration, ok bool) {
	ports, err := service.ParsePorts(entry)
	for _, s := range c.Services {
		overlaps := err == nil && slices.ContainsFunc(s.Ports, func(p service.Ports) bool {
			return p.Proto == ports.Proto && p.Low <= ports.High && ports.Low <= p.High
		})
		if (overlaps || s.Name == entry) && (!ok || s.MaxFor < most) {
			most, ok = s.MaxFor, true
		}
	}
	return most, ok
}
