package check

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// checkFleet reports what keeps bundles of the fleet from being taken over. It adds the fleet's clients to the
// registry.
func checkFleet(c *config.Config, registry *keys.Registry, now time.Time) []Finding {
	bundles := setup.JoinFleet(c, registry, nil, now)
	if bundles == nil {
		return nil
	}
	var found []Finding
	if bundles.Key != nil {
		advice := "# fix the file"
		if errors.Is(bundles.Key, fs.ErrNotExist) {
			advice = "spa-server init --fleet\n# prints what the office must learn of the gateway: spa-fleet gateway add NAME"
		}
		found = append(found, Finding{Severity: Problem, Subject: config.FleetKeyFile, Text: bundles.Key.Error(),
			Advice: advice})
	}
	found = append(found, checkBundles(c, bundles, now)...)
	found = append(found, checkShared(c, bundles.Best())...)
	if files := registry.Shadowed(); len(files) > 0 {
		text := "the fleet has clients of these names, so their files do not count: " + audit.Few(files, 5)
		if !c.Fleet.LocalClients {
			text = "local_clients is not set, so the files of these clients do not count: " + audit.Few(files, 5)
		}
		found = append(found, Finding{
			Severity: Notice, Subject: config.ClientsDir, Text: text,
			Advice: "# remove the files, or: spa-server set fleet.local_clients=true",
		})
	}
	return found
}

// checkBundles reports a bundle that is missing, refused or old.
func checkBundles(c *config.Config, bundles *setup.Bundles, now time.Time) []Finding {
	const publish = "# at the office: spa-fleet publish; then see whether it gets to this file"
	best, missing := bundles.Best(), errors.Is(bundles.Refused, fs.ErrNotExist)
	severity, means := Problem, "none is in force, so the clients of the fleet cannot knock"
	if best != nil {
		severity, means = Warning, fmt.Sprintf("bundle %d stays in force", best.Serial)
	}
	var found []Finding
	switch {
	case missing && !setup.IsDir(filepath.Dir(c.Fleet.Bundle)):
		found = append(found, Finding{
			Severity: severity, Subject: "fleet.bundle",
			Text:   bundles.Refused.Error() + ": " + means,
			Advice: "mkdir -p " + quote.Shell(filepath.Dir(c.Fleet.Bundle)) + " && " + setup.Restart,
		})
	case missing && best == nil:
		found = append(found, Finding{
			Severity: Problem, Subject: c.Fleet.Bundle, Text: "there is no bundle of the fleet: " + means, Advice: publish,
		})
	case bundles.Refused != nil && !missing && !errors.Is(bundles.Refused, setup.ErrFleetKey):
		found = append(found, Finding{
			Severity: severity, Subject: c.Fleet.Bundle,
			Text: "it is refused: " + bundles.Refused.Error() + ": " + means, Advice: publish,
		})
	}
	if best != nil && now.Sub(best.Issued) > c.Fleet.MaxAge {
		found = append(found, Finding{
			Severity: Warning, Subject: "fleet.max_age",
			Text: fmt.Sprintf("bundle %d was issued on %s: revocations may not arrive here", best.Serial,
				best.Issued.Format(time.DateOnly)),
			Advice: publish,
		})
	}
	return found
}

// checkShared reports services that cannot be what they say on an address that gateways share.
func checkShared(c *config.Config, best *setup.Bundle) []Finding {
	if best == nil || best.Contents.Share.IsZero() {
		return nil
	}
	var found []Finding
	for _, s := range c.Services {
		if s.Once {
			found = append(found, Finding{
				Severity: Problem, Subject: "service." + s.Name + ".once",
				Text: "true, and this gateway shares the address of " + best.Contents.Site + ": only the gateway that gets the " +
					"knock lets its client in, and the connection may go to another one",
				Advice: "# take it out, or give the service a gateway of its own",
			})
		}
	}
	return found
}

// checkMember reports what the running server says about bundles.
func checkMember(f *control.Fleet) []Finding {
	if f == nil {
		return nil
	}
	var found []Finding
	if f.Unwatched {
		found = append(found, Finding{
			Severity: Problem, Subject: "fleet.bundle",
			Text:   "the server could not open its directory when it was started, so new bundles go unnoticed",
			Advice: setup.Restart,
		})
	}
	if f.Unkept != "" {
		found = append(found, Finding{
			Severity: Warning, Subject: "state",
			Text:   f.Unkept + ": a restart may bring the bundle before back",
			Advice: "# make space, and then: " + setup.Restart,
		})
	}
	return append(found, checkSite(f)...)
}

// checkSite reports why a gateway that shares its address does not take part.
func checkSite(f *control.Fleet) []Finding {
	h := f.Shared
	if h == nil || h.Joined {
		return nil
	}
	means := "clients of the fleet cannot knock"
	if h.Local {
		means = "each gateway of the site decides alone"
	}
	const subject = "fleet.share"
	switch {
	case !h.Connected:
		return []Finding{{Severity: Problem, Subject: subject, Text: "no agent is connected to the socket: " + means,
			Advice: "systemctl status spa-fleet-agent\n# its user must reach the socket; share in agent.toml names it"}}
	case h.Taken:
		return []Finding{{Severity: Problem, Subject: subject, Text: "another gateway takes part under this one's name, or " +
			"this one did until some seconds ago: " + means, Advice: "# give each gateway its own: fleet.gateway"}}
	}
	return []Finding{{Severity: Problem, Subject: subject, Text: "the gateway's store is away: " + means,
		Advice: "# see whether etcd works and is reached: journalctl -u spa-fleet-agent"}}
}
