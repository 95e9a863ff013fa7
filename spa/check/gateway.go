package check

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/setup"
)

// checkHost looks for obstacles on this host.
func checkHost(ctx context.Context, c *config.Config, h *host) []Finding {
	found := checkTables(c, h)
	for _, check := range []func(*config.Config, *host) []Finding{
		checkFrom, checkIngress, checkClosed, checkKnockSeen, checkKnockPorts, checkBeside, checkDetours,
		checkServed, checkShutHere,
		checkOwnPorts, checkInterfaces, checkBridges, checkMarks, checkAccount, checkClock, checkConntrack, checkForgets,
		checkAround, checkMedium,
		checkGuard, checkOpenable, checkBoot, checkFlush, checkAccess, checkSandbox,
	} {
		found = append(found, check(c, h)...)
	}
	found = append(found, checkAddress(ctx, c, h)...)
	found = append(found, checkAddressPort(c)...)
	found = append(found, checkForward(ctx, c, h)...)
	found = append(found, checkCopies(c)...)
	return append(found, checkUnseen(h)...)
}

// checkUnseen reports what could not be inspected, so that silence is not taken for a clean result.
func checkUnseen(h *host) []Finding {
	var found []Finding
	advice := "# run check as root, in the gateway's own network namespace"
	if h.uid == 0 {
		advice = "# run check in the gateway's own network namespace; if you did, look by hand"
	}
	for _, u := range h.unseen {
		found = append(found, Finding{
			Severity: Notice, Subject: "not inspected",
			Text:   u.what + ": " + u.why,
			Advice: advice,
		})
	}
	return found
}

func checkClock(c *config.Config, h *host) []Finding {
	const advice = "timedatectl set-ntp true"
	switch {
	case !h.clock.known:
		return nil
	case !h.clock.synced:
		return []Finding{{
			Severity: Notice, Subject: "clock",
			Text:   fmt.Sprintf("no time service sets this host's clock: once it is %v off, all knocks are refused", c.Window),
			Advice: advice,
		}}
	case h.clock.within > c.Window/2:
		return []Finding{{
			Severity: Notice, Subject: "clock",
			Text:   fmt.Sprintf("this host's clock may be off by %v, and a knock by at most %v", h.clock.within, c.Window),
			Advice: advice,
		}}
	}
	return nil
}

func checkConntrack(_ *config.Config, h *host) []Finding {
	const much = 80 // percent
	n, limit := h.conntrack.count, h.conntrack.max
	if limit == 0 || 100*n < limit*much {
		return nil
	}
	return []Finding{{
		Severity: Notice, Subject: "nf_conntrack_max",
		Text: fmt.Sprintf("%d of %d connections are tracked: when the table is full, new ones are dropped, "+
			"even granted ones", n, limit),
		Advice: fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d\n# what fills it: conntrack -S", 4*limit),
	}}
}

// checkInterfaces looks for names of interfaces that do not exist. Rules know an interface only by its first name, the
// sniffer by all.
func checkInterfaces(c *config.Config, h *host) []Finding {
	if h.links == nil {
		return nil
	}
	var found []Finding
	missing := func(key, name, then string) {
		found = append(found, Finding{
			Severity: Notice, Subject: key,
			Text:   fmt.Sprintf("there is no interface %s now: %s", name, then),
			Advice: "ip link\n# shows those that exist",
		})
	}
	for _, name := range c.Capture.Interfaces {
		if _, ok := h.link(name); !ok {
			missing("capture.interfaces", name, "no knock is seen there until it appears")
		}
	}
	for _, name := range c.Firewall.TrustedInterfaces {
		l, ok := h.link(name)
		switch {
		case !ok:
			missing("firewall.trusted_interfaces", name, "any interface that gets this name later is trusted")
		case l.Name != name:
			found = append(found, Finding{
				Severity: Problem, Subject: "firewall.trusted_interfaces",
				Text: fmt.Sprintf("%s is an alternative name of %s, and firewall rules do not know such names: it has no "+
					"effect", name, l.Name),
				Advice: fmt.Sprintf("# write %q instead of %q", l.Name, name),
			})
		}
	}
	return found
}

// link returns the interface of a name.
func (h *host) link(name string) (survey.Link, bool) {
	i := slices.IndexFunc(h.links, func(l survey.Link) bool { return l.Is(name) })
	if i < 0 {
		return survey.Link{}, false
	}
	return h.links[i], true
}

// checkAddress checks whether the clients' address leads here. Behind a NAT it cannot tell.
func checkAddress(ctx context.Context, c *config.Config, h *host) []Finding {
	name, _, err := service.SplitAddress(c.Address)
	if err != nil || h.links == nil {
		return nil
	}
	said := name + " is not an address of this host"
	addr, err := netip.ParseAddr(name)
	addrs := []netip.Addr{addr}
	if err != nil {
		if addrs, err = h.resolve(ctx, name); err != nil {
			return []Finding{{
				Severity: Notice, Subject: "address",
				Text:   fmt.Sprintf("%s cannot be looked up from here: %v", name, err),
				Advice: "# check that clients can",
			}}
		}
		said = fmt.Sprintf("%s is %v, which is not an address of this host", name, addrs)
	}
	if slices.ContainsFunc(addrs, h.has) {
		return nil
	}
	return []Finding{{
		Severity: Notice, Subject: "address",
		Text:   said,
		Advice: "# fine if a router leads that address here; otherwise clients knock elsewhere",
	}}
}

// checkAddressPort checks whether the port in the clients' address is a knock port.
func checkAddressPort(c *config.Config) []Finding {
	_, port, err := service.SplitAddress(c.Address)
	if err != nil || port == 0 || isKnockPort(c, port) {
		return nil
	}
	return []Finding{{
		Severity: Notice, Subject: "address",
		Text:   fmt.Sprintf("clients knock on udp/%d, but knock_ports does not include it", port),
		Advice: "# fine if a router leads that port to one of knock_ports; otherwise their knocks are lost",
	}}
}

// checkAccount checks the user that the server becomes.
func checkAccount(c *config.Config, h *host) []Finding {
	if _, _, ok := h.accounts(setup.SystemUser); ok {
		return nil
	}
	if readUnit(h.root, "spa-server.service").last("User") == setup.SystemUser {
		return []Finding{{
			Severity: Problem, Subject: "user " + setup.SystemUser,
			Text:   "there is none, and spa-server.service starts the server as that user: it does not start",
			Advice: setup.MakeUser + " && " + setup.HandOver(setup.SystemUser, c.Dir),
		}}
	}
	return []Finding{{
		Severity: Notice, Subject: "user " + setup.SystemUser,
		Text: fmt.Sprintf("there is none: a server started by root becomes the user %d, which has no name",
			sandbox.Unnamed),
		Advice: setup.MakeUser + " && " + setup.HandOver(setup.SystemUser, c.Dir),
	}}
}

// checkSandbox reports which parts of the sandbox this kernel lacks.
func checkSandbox(_ *config.Config, h *host) []Finding {
	var found []Finding
	for _, text := range h.lacks {
		found = append(found, Finding{
			Severity: Warning, Subject: "sandbox",
			Text: text + ": a compromised server can do more",
			Advice: "# it needs a kernel with CONFIG_SECURITY_LANDLOCK (Linux 5.13, and landlock in /sys/kernel/security/lsm) " +
				"and CONFIG_SECCOMP_FILTER; in a container, what its runtime forbids",
		})
	}
	return found
}

// checkGuard checks whether the guard is where it should be.
func checkGuard(c *config.Config, h *host) []Finding {
	if h.rules != nil && c.Firewall.Backend == "dry-run" && h.guarded() {
		return []Finding{{
			Severity: Problem, Subject: "guard",
			Text:   "an earlier one is still loaded, and a dry run lets no client through it",
			Advice: "spa-server teardown && systemctl restart spa-server.service",
		}}
	}
	if h.rules == nil || c.Firewall.Backend == "dry-run" || c.Firewall.Mode == "admit" || len(c.Services) == 0 {
		return nil
	}
	const open = "NOT LOADED: the guarded ports are as open as this host's own firewall leaves them"
	_, _, never := setup.LastGood(c.Dir)
	stands := h.guarded()
	switch {
	case h.running && !stands:
		return []Finding{{
			Severity: Problem, Subject: "guard",
			Text:   open + ", and the running server cannot restore it: journalctl -u spa-server shows why",
			Advice: "systemctl restart spa-server.service",
		}}
	case !stands && errors.Is(never, setup.ErrNeverGood):
		return []Finding{{
			Severity: Warning, Subject: "guard",
			Text:   "not loaded yet: the ports are as open as this host's own firewall leaves them",
			Advice: "spa-server run --confirm 5m",
		}}
	case !stands:
		return []Finding{{
			Severity: Problem, Subject: "guard",
			Text:   open + ", and no server is running",
			Advice: "systemctl restart spa-guard.service spa-server.service",
		}}
	case !h.running:
		return []Finding{{
			Severity: Problem, Subject: "spa-server",
			Text:   "it is not running: the guarded ports are shut, and no client can knock",
			Advice: "systemctl restart spa-server.service",
		}}
	}
	return nil
}

// guarded reports whether the guard of either backend is in the kernel.
func (h *host) guarded() bool {
	if _, ok := h.rules.Table("inet", "spa"); ok {
		return true
	}
	return h.byIPTables()
}

// byIPTables reports whether the loaded guard is that of iptables.
func (h *host) byIPTables() bool {
	return h.rules.Chain("ip", "mangle", "spa-guard") || h.rules.Chain("ip6", "mangle", "spa-guard")
}
