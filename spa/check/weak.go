package check

import (
	"fmt"
	"time"

	"sallyport/keys"
	"sallyport/spa/audit"
	"sallyport/spa/config"
)

// checkWeak reports each setting of the gateway that gives something up, whether or not anything on this host uses it
// now. SECURITY.md has the list; capture.mode is reported with the knock ports.
func checkWeak(c *config.Config, h *host) []Finding {
	var found []Finding
	weak := func(subject, text, advice string) {
		found = append(found, Finding{Severity: Warning, Subject: subject, Text: text, Advice: advice})
	}
	if standard := config.Default(c.Dir).Window; c.Window > standard {
		weak("window",
			fmt.Sprintf("%v: a packet that an attacker holds back stays valid for longer than necessary", c.Window),
			fmt.Sprintf("# in %s: window = %q; let NTP keep the clocks", config.FileName, standard))
	}
	for _, name := range c.Firewall.TrustedInterfaces {
		weak("firewall.trusted_interfaces", name+": every host behind it reaches all guarded ports without a knock",
			"# remove it unless you want that")
	}
	if c.Firewall.TPROXY {
		weak("firewall.tproxy", "true: packets that a TPROXY rule assigns to a guarded port's socket bypass the guard",
			"# take it out unless a TPROXY rule needs it")
	}
	if c.Capture.Browser {
		weak("capture.browser", "true: knocks from browsers look like the checks of a video call, not like random bytes, "+
			"and a web server that serves another page can take the keys", "# take it out unless a client knocks with a browser")
	}
	if c.Capture.Gate == "xdp" {
		weak("capture.gate", `"xdp": forged knocks get no answer of this host, beyond those that it answers at most, so a `+
			"flood may tell the knock port from others", "# in "+config.FileName+`: gate = "auto", unless floods cost too much`)
	}
	for _, s := range c.Services {
		if s.Masquerade {
			weak("service."+s.Name+".masquerade",
				"true: that machine sees this host's address in place of every client's, so its log and what it bans by "+
					"address do not tell them apart",
				"# take it out if that machine can route its replies through this host")
		}
	}
	if c.Fleet.Standalone == config.StandaloneLocal {
		weak("fleet.standalone", `"local": if this gateway shares its address and the store is away, a packet can be used `+
			"once at each gateway, and a close or a revocation holds here only", "# take it out unless clients must get in then")
	}
	switch {
	case c.Firewall.Backend == "dry-run":
		weak("firewall.backend", "dry-run: requests are decided and recorded, and no port is guarded",
			"# in "+config.FileName+`: backend = "auto"`)
	case c.Firewall.Mode == "admit":
		weak("firewall.mode", `"admit": your own rules shut the ports, and a mistake in them is an open port`,
			"# in "+config.FileName+`: mode = "guard", unless this host must drop by default`)
	case c.Firewall.Backend == "iptables" || h.rules != nil && h.byIPTables():
		weak("firewall.backend", "iptables: if the table mangle is flushed while the server is dead (firewalld does so on "+
			"each reload), the ports are open until it starts", "# in "+config.FileName+`: backend = "nftables", if `+
			"this kernel has it")
	case c.Firewall.Persist == "file":
		weak("firewall.persist", `"file": a flush other than that of your own file opens the ports until the server `+
			"restores the guard, or, if it is dead, starts",
			"# in "+config.FileName+`: persist = "owner", on Linux 6.9 or later`)
	}
	return found
}

// checkWeakKeys reports what weakens the keys of clients that are not revoked.
func checkWeakKeys(gates keys.Gates, registry *keys.Registry, now time.Time) []Finding {
	var observed, overlap, wide []string
	for _, client := range registry.Clients() {
		if !client.Revoked.IsZero() {
			continue
		}
		if !client.RequireSource {
			observed = append(observed, client.Name)
		}
		if client.LetsInMore() {
			wide = append(wide, client.Name)
		}
		if p := client.Previous; p != nil && longer(p.Until.Sub(now), keys.ClientOverlap) {
			overlap = append(overlap, client.Name)
		}
	}
	var found []Finding
	if len(observed) > 0 {
		found = append(found, Finding{
			Severity: Warning, Subject: "require_source",
			Text: fmt.Sprintf("not set for %s: an attacker who intercepts a packet that states no address can send it on "+
				"from another and be let in", audit.Few(observed, 5)),
			Advice: "# set require_source = true for clients that have a public address of their own",
		})
	}
	if len(wide) > 0 {
		found = append(found, Finding{
			Severity: Warning, Subject: "widest4",
			Text: fmt.Sprintf("or widest6 or delegate, is set for %s: everybody in a network that is let in reaches the port",
				audit.Few(wide, 5)),
			Advice: "# keep networks narrow; these take them away: spa-keygen set NAME widest4= widest6= delegate=",
		})
	}
	if len(overlap) > 0 {
		found = append(found, Finding{
			Severity: Warning, Subject: "previous",
			Text: fmt.Sprintf("the replaced key of %s stays valid for more than %d days: a stolen copy of it does too",
				audit.Few(overlap, 5), keys.ClientOverlap/(24*time.Hour)),
			Advice: "# in the client's file: an earlier until",
		})
	}
	if longer(gates.Until.Sub(now), keys.GateOverlap) {
		found = append(found, Finding{
			Severity: Warning, Subject: config.GateFile,
			Text: fmt.Sprintf("the replaced gate key stays valid until %s: whoever has it can tell knocks from noise "+
				"until then", gates.Until.Format(time.DateOnly)),
			Advice: "# rotate it again once all clients have the new one: spa-keygen rotate-gate --overlap 0",
		})
	}
	return found
}

// longer compares in seconds, to which the files round up.
func longer(d, than time.Duration) bool { return d.Truncate(time.Second) > than }
