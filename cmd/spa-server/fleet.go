package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// initFleet makes the gateway's key for a fleet and prints what the office must learn. That line alone goes to standard
// output, so that it can be sent there.
func initFleet(cmd *cobra.Command, c *config.Config) error {
	request, made, err := setup.InitFleet(c)
	if err != nil {
		return err
	}
	if made {
		cli.Note(cmd, "wrote %s, which never leaves this host", quote.Shell(config.FleetKeyFile))
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), request); err != nil {
		return err
	}
	if !c.Fleet.On() {
		cli.Note(cmd, "give this line to the office: spa-fleet gateway add NAME. Then run here the command that it prints, "+
			"spa-server set fleet.id=... fleet.office=..., and: %s", setup.Restart)
	}
	return nil
}

// fleetLines prints which bundle of the fleet is in force, and what is wrong with it.
func fleetLines(line func(what, format string, args ...any), s *control.Status) {
	f := s.Fleet
	if f == nil {
		return
	}
	age := (time.Duration(f.Age) * time.Second).String()
	if f.Serial == 0 {
		line("fleet", "NO BUNDLE: none of its clients can knock until the office has published one to %s", f.File)
	} else {
		line("fleet", "%s by bundle %d, issued at %s (%s ago), in force since %s: %d clients", f.Gateway, f.Serial,
			cli.Clock(f.Issued, s.Now), age, cli.Clock(f.Since, s.Now), f.Clients)
	}
	sharedLines(line, f)
	if f.Old {
		line("", "THE BUNDLE IS OLD: revocations may not arrive here; max_age is %v", time.Duration(f.MaxAge)*time.Second)
	}
	if f.Unwatched {
		line("", "NEW BUNDLES GO UNNOTICED: the directory of %s could not be opened", f.File)
	}
	if f.Unkept != "" {
		line("", "NOT KEPT, so a restart may bring the one before back: %s", f.Unkept)
	}
	if len(f.Shadowed) > 0 {
		line("", "client files that do not count: %s", audit.Few(f.Shadowed, 5))
	}
	if r := f.LastRefused; r != nil {
		line("", "REFUSED at %s: %s", cli.Clock(r.At, s.Now), r.Why)
	}
	var counts []string
	for _, reason := range slices.Sorted(maps.Keys(f.Refused)) {
		if n := f.Refused[reason]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, reason))
		}
	}
	if len(counts) > 0 {
		line("", "refused since the start: %s", strings.Join(counts, ", "))
	}
}

// sharedLines prints what a gateway knows of those with which it shares its address.
func sharedLines(line func(what, format string, args ...any), f *control.Fleet) {
	h := f.Shared
	if h == nil {
		return
	}
	means := "clients of the fleet cannot knock here"
	if h.Local {
		means = "this gateway decides alone (standalone = \"local\")"
	}
	switch {
	case !h.Connected:
		line("site", "%s: NO AGENT is connected to %s: %s", h.Site, h.Socket, means)
	case h.Taken:
		line("site", "%s: ANOTHER GATEWAY takes part as %s: %s", h.Site, f.Gateway, means)
	case !h.Joined:
		line("site", "%s: THE STORE IS AWAY: %s", h.Site, means)
	default:
		line("site", "%s: gateways that take part: %s", h.Site, audit.Few(h.Members, 10))
	}
	line("", "packets of the site: %d won, %d spent elsewhere, %d repeated, %d without an answer of the store",
		h.Counts["won"], h.Counts["spent"], h.Counts["repeated"], h.Counts["unanswered"])
}
