package check

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// checkKnockPorts looks for programs on knock ports that are not set to shared.
func checkKnockPorts(c *config.Config, h *host) []Finding {
	var found []Finding
	for _, k := range c.KnockPorts {
		served := h.listensForOthers(service.UDP, k.Port)
		if c.Bound() {
			found = append(found, boundPort(k.Port, served)...)
			continue
		}
		if !k.Shared && len(served) > 0 {
			found = append(found, Finding{
				Severity: Warning, Subject: "knock_ports",
				Text: fmt.Sprintf("%s on this host serves udp/%d too: packets there are not tracked, and its answers reveal "+
					"the port", by(served), k.Port),
				Advice: fmt.Sprintf("# take another port, or write { port = %d, shared = true }", k.Port),
			})
		}
		if k.Shared && len(served) == 0 {
			found = append(found, Finding{
				Severity: Notice, Subject: "knock_ports",
				Text: fmt.Sprintf("udp/%d is set to shared, but nothing on this host serves it: each knock leaves a needless "+
					"entry in connection tracking", k.Port),
				Advice: fmt.Sprintf("# write %d in place of { port = %[1]d, shared = true }", k.Port),
			})
		}
	}
	return found
}

// boundPort reports what a knock port gives up that the server itself binds.
func boundPort(port uint16, served []listener) []Finding {
	found := []Finding{{
		Severity: Warning, Subject: "capture.mode",
		Text: fmt.Sprintf("\"udp\" binds udp/%d: where closed ports answer \"port unreachable\", a scan sees that this one "+
			"does not, and the host's firewall must let knocks through", port),
		Advice: "# set mode = \"sniff\", which needs CAP_NET_RAW",
	}}
	others := slices.DeleteFunc(slices.Clone(served), func(l listener) bool {
		return len(l.held) == 0 || slices.ContainsFunc(l.held, // unknown: only root sees whose a socket is
			func(name string) bool { return strings.HasPrefix(name, "spa-server") })
	})
	if len(others) > 0 {
		found = append(found, Finding{
			Severity: Problem, Subject: "knock_ports",
			Text:   fmt.Sprintf("%s on this host has udp/%d, so the server cannot bind it", by(others), port),
			Advice: "# take another port, or set capture.mode = \"sniff\"",
		})
	}
	return found
}

// by names the programs that hold sockets, as far as known.
func by(ls []listener) string {
	var names []string
	for _, l := range ls {
		names = append(names, l.held...)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "a program"
	}
	return strings.Join(names, ", ")
}

// checkServed looks for services without a program behind their ports. It skips ranges, which are seldom used
// completely, and UDP services, which may start on demand.
func checkServed(c *config.Config, h *host) []Finding {
	if h.listeners == nil {
		return nil
	}
	var found []Finding
	for _, s := range c.Services {
		if expected(s) && !h.served(c, s) {
			found = append(found, Finding{
				Severity: Notice, Subject: "service." + s.Name,
				Text:   fmt.Sprintf("nothing on this host listens on %s except on loopback", portList(s.Ports)),
				Advice: "# start what serves it, on an address that clients reach, or remove the service",
			})
		}
	}
	return found
}

// checkShutHere looks for programs of this host on ports that belong only to services at other addresses. The guard
// shuts such a port here to everyone.
func checkShutHere(c *config.Config, h *host) []Finding {
	if c.Firewall.Backend == "dry-run" {
		return nil
	}
	var found []Finding
	for _, s := range c.Services {
		if len(s.Addresses) == 0 {
			continue
		}
		var shut []listener
		one := said{}
		for _, l := range h.listeners {
			if service.Covers(s.Ports, l.Proto, l.local.Port()) && !l.local.Addr().IsLoopback() && !h.opensHere(c, l) {
				shut = append(shut, l)
				one.add(single(l.Proto, l.local.Port()))
			}
		}
		if len(shut) > 0 {
			found = append(found, Finding{
				Severity: Notice, Subject: "service." + s.Name,
				Text: fmt.Sprintf("it has addresses of its own, and %s listens on %s of this host: there the guard shuts the "+
					"port to everyone", by(shut), portList(one.ports)),
				Advice: fmt.Sprintf("# if it should be used here too, add another service with ports = [%s] and no addresses",
					quoted(one.ports)),
			})
		}
	}
	return found
}

// opensHere reports whether a service can open a socket of this host: a service without addresses, or one with the
// socket's address among them.
func (h *host) opensHere(c *config.Config, l listener) bool {
	return slices.ContainsFunc(c.Services, func(s config.Service) bool {
		if !service.Covers(s.Ports, l.Proto, l.local.Port()) {
			return false
		}
		return len(s.Addresses) == 0 || slices.ContainsFunc(s.Addresses, func(a netip.Addr) bool {
			return a == l.local.Addr() || l.local.Addr().IsUnspecified() && h.has(a)
		})
	})
}

// has reports whether an address belongs to this host.
func (h *host) has(a netip.Addr) bool {
	return slices.ContainsFunc(h.links, func(l survey.Link) bool { return l.Own(a.WithZone("")) })
}

// expected reports whether a program should always listen on a port of the service.
func expected(s config.Service) bool {
	return len(s.Ports) > 0 && len(s.Addresses) == 0 && !s.Forwards() &&
		!slices.ContainsFunc(s.Ports, func(p service.Ports) bool { return p.Proto != service.TCP || p.Low != p.High })
}

// served reports whether a program listens on a port of the service, here or at the target of DNAT.
func (h *host) served(c *config.Config, s config.Service) bool {
	ways := h.approaches(c)
	for _, p := range s.Ports {
		if len(h.listensForOthers(p.Proto, p.Low)) > 0 {
			return true
		}
		if h.rules == nil {
			continue
		}
		for _, is4 := range []bool{true, false} {
			if o, ok := h.judge(ways, is4, p.Proto, p.Low); ok && (o.Redirected || o.Verdict == survey.Perhaps) {
				return true
			}
		}
	}
	return false
}
