package check

import (
	"fmt"
	"net/netip"
	"slices"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// checkFrom follows the client's knock and its connections. What stops everybody is said elsewhere.
func checkFrom(c *config.Config, h *host) []Finding {
	if !h.from.IsValid() || h.rules == nil || c.Firewall.Backend == "dry-run" {
		return nil
	}
	in, err := h.comesInBy()
	if err != nil {
		return []Finding{{
			Severity: Problem, Subject: "--from",
			Text:   fmt.Sprintf("by which interface %s comes in is not known: %v", h.from, err),
			Advice: "ip route get " + h.from.WithZone("").String(),
		}}
	}
	if in.Loopback {
		return []Finding{{
			Severity: Notice, Subject: "--from",
			Text:   fmt.Sprintf("%s is this host's own: from there no knock is needed, and none is taken", h.from),
			Advice: "# give --from the address that the gateway sees of the client",
		}}
	}
	found := h.knocksBy(c, in)
	theirs := collect(h.destinationsBy(c, in), h,
		func(o survey.Outcome) (Finding, survey.Place) { return h.blockedFrom(o), o.At })
	var everybodys []Finding
	if c.Firewall.Mode != "admit" { // there it is right that strangers are dropped
		everybodys = collect(h.destinations(c), h, func(o survey.Outcome) (Finding, survey.Place) { return blocked(o), o.At })
	}
	for _, f := range theirs {
		same := func(e Finding) bool { return e.Subject == f.Subject && e.Severity == f.Severity }
		if !slices.ContainsFunc(everybodys, same) {
			found = append(found, f)
		}
	}
	return found
}

// comesInBy returns the interface by which the client reaches this host: the one that leads to it.
func (h *host) comesInBy() (survey.Link, error) {
	zone := h.from.Zone()
	if zone == "" {
		return h.rules.Toward(h.from)
	}
	l, ok := h.link(zone)
	if !ok {
		return survey.Link{}, fmt.Errorf("there is no interface %s", zone)
	}
	return l, nil
}

// knocksBy looks for what keeps the client's knock from being seen: the sniffer sees it before any table but
// those at the interface.
func (h *host) knocksBy(c *config.Config, in survey.Link) []Finding {
	var found []Finding
	if names := c.Capture.Interfaces; len(names) > 0 && !slices.ContainsFunc(names, in.Is) {
		found = append(found, Finding{
			Severity: Problem, Subject: "capture.interfaces",
			Text:   fmt.Sprintf("%s comes in by %s, which is not among them: its knocks are not seen", h.from, in.Name),
			Advice: fmt.Sprintf("# add %q", in.Name),
		})
	}
	for _, k := range c.KnockPorts {
		port := single(service.UDP, k.Port)
		for _, a := range h.waysOf(c, in) {
			packet := packetTo(a, service.UDP, k.Port)
			theirs := h.rules.AtIngress(packet)
			packet.From = netip.Addr{}
			if theirs.Verdict != survey.Drops || h.rules.AtIngress(packet).At == theirs.At {
				continue
			}
			found = append(found, Finding{
				Severity: Problem, Subject: "knock_ports",
				Text:   fmt.Sprintf("%s drops what comes from %s to udp/%d before a knock can be seen", theirs.At, h.from, k.Port),
				Advice: theirs.At.AllowFrom(h.from.WithZone(""), port),
			})
			break
		}
	}
	return found
}

// waysOf returns the client's ways to this host: to the address that clients are told, if that is here, or
// else to those of the interface by which it comes in.
func (h *host) waysOf(c *config.Config, in survey.Link) []approach {
	var ways []approach
	for _, to := range append(h.told(c), h.reachedBy(in)...) {
		if to.Is4() == h.from.Is4() {
			ways = append(ways, h.wayOf(c, in, to))
		}
	}
	return ways[:min(len(ways), 1)]
}

// wayOf is the way to one address, once the client is granted.
func (h *host) wayOf(c *config.Config, in survey.Link, to netip.Addr) approach {
	way := approach{link: in.Name, to: to, from: h.from.WithZone("")}
	if set := (map[bool]string{true: c.Firewall.Admit.Set4,
		false: c.Firewall.Admit.Set6}[to.Is4()]); c.Firewall.Mode == "admit" && set != "" {
		way.as = []survey.Set{{Family: c.Firewall.Admit.Family, Table: c.Firewall.Admit.Table, Name: set}}
	}
	return way
}

// told returns the address that clients are told, if it is written as one and this host has it.
func (h *host) told(c *config.Config) []netip.Addr {
	name, _, err := service.SplitAddress(c.Address)
	if err != nil {
		return nil
	}
	to, err := netip.ParseAddr(name)
	if err != nil || !h.has(to) {
		return nil
	}
	return []netip.Addr{to}
}

// destinationsBy is destinations for the client.
func (h *host) destinationsBy(c *config.Config, in survey.Link) []destination {
	here := destination{ways: h.waysOf(c, in)}
	var others []destination
	for _, s := range c.Services {
		if len(s.Addresses) == 0 {
			here.ports = append(here.ports, s.Ports...)
		}
		for _, to := range s.Addresses {
			others = append(others, destination{s.Ports, []approach{h.wayOf(c, in, to)}})
		}
	}
	return append([]destination{here}, others...)
}

// blockedFrom words an outcome that does not let the client in.
func (h *host) blockedFrom(o survey.Outcome) Finding {
	switch o.Verdict {
	case survey.Drops:
		return Finding{Severity: Problem, Text: "drops new connections to %s from " + h.from.String() +
			": the guard cannot open what another table drops"}
	case survey.Perhaps:
		return Finding{Severity: Notice, Text: "may drop new connections to %s from " + h.from.String() +
			": a condition in it cannot be judged from here"}
	}
	return Finding{}
}
