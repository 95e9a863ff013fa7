package check

import (
	"fmt"
	"net/netip"
	"slices"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// checkFrom follows the client's knock and its connections. Obstacles for everyone are reported elsewhere.
func checkFrom(c *config.Config, h *host) []Finding {
	if !h.from.IsValid() || h.rules == nil || c.Firewall.Backend == "dry-run" {
		return nil
	}
	in, err := h.comesInBy()
	if err != nil {
		return []Finding{{
			Severity: Problem, Subject: "--from",
			Text:   fmt.Sprintf("it is unknown on which interface %s arrives: %v", h.from, err),
			Advice: "ip route get " + h.from.WithZone("").String(),
		}}
	}
	if in.Loopback {
		return []Finding{{
			Severity: Notice, Subject: "--from",
			Text:   fmt.Sprintf("%s is this host's own address: no knock is needed from there, and none is accepted", h.from),
			Advice: "# give --from the client's address as the gateway sees it",
		}}
	}
	found := h.knocksBy(c, in)
	theirs := collect(h.destinationsBy(c, in), h,
		func(o survey.Outcome) (Finding, survey.Place) { return h.blockedFrom(o), o.At })
	var everybodys []Finding
	if c.Firewall.Mode != "admit" { // in mode admit, strangers should be dropped
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

// comesInBy returns the interface on which the client's packets arrive: the one that leads to the client.
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

// knocksBy looks for what keeps the server from seeing the client's knock: only tables at the interface come before the
// sniffer.
func (h *host) knocksBy(c *config.Config, in survey.Link) []Finding {
	var found []Finding
	if names := c.Capture.Interfaces; len(names) > 0 && !slices.ContainsFunc(names, in.Is) {
		found = append(found, Finding{
			Severity: Problem, Subject: "capture.interfaces",
			Text: fmt.Sprintf("%s arrives on %s, which is not among them: the server does not see its knocks", h.from,
				in.Name),
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

// waysOf returns the client's paths to this host: to the address in the tokens, if it is here, or else to those of the
// interface on which it arrives.
func (h *host) waysOf(c *config.Config, in survey.Link) []approach {
	var ways []approach
	for _, to := range append(h.told(c), h.reachedBy(in)...) {
		if to.Is4() == h.from.Is4() {
			ways = append(ways, h.wayOf(c, in, to))
		}
	}
	return ways[:min(len(ways), 1)]
}

// wayOf returns the path to one address for the client with a grant.
func (h *host) wayOf(c *config.Config, in survey.Link, to netip.Addr) approach {
	way := approach{link: in.Name, to: to, from: h.from.WithZone("")}
	if set := (map[bool]string{true: c.Firewall.Admit.Set4,
		false: c.Firewall.Admit.Set6}[to.Is4()]); c.Firewall.Mode == "admit" && set != "" {
		way.as = []survey.Set{{Family: c.Firewall.Admit.Family, Table: c.Firewall.Admit.Table, Name: set}}
	}
	return way
}

// told returns the address in the clients' tokens, if it is an IP address of this host.
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
			here.ports = append(here.ports, s.Here()...)
		}
		for _, to := range s.Addresses {
			others = append(others, destination{s.Ports, []approach{h.wayOf(c, in, to)}})
		}
		for to, ports := range s.Led() {
			others = append(others, destination{ports, []approach{h.wayOf(c, in, to)}})
		}
	}
	return append([]destination{here}, others...)
}

// blockedFrom returns the finding for an outcome that does not let the client in.
func (h *host) blockedFrom(o survey.Outcome) Finding {
	switch o.Verdict {
	case survey.Drops:
		return Finding{Severity: Problem, Text: "drops new connections to %s from " + h.from.String() +
			": the guard cannot open what another table drops"}
	case survey.Perhaps:
		return Finding{Severity: Notice, Text: "may drop new connections to %s from " + h.from.String() +
			": a condition in it cannot be evaluated here"}
	}
	return Finding{}
}
