package check

import (
	"fmt"
	"slices"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// A scanner's view of this host.

// checkIngress looks for rules that drop knocks before the sniffer sees them.
func checkIngress(c *config.Config, h *host) []Finding {
	if h.rules == nil {
		return nil
	}
	var found []Finding
	for _, k := range c.KnockPorts {
		for _, a := range h.approaches(c) {
			o := h.rules.AtIngress(packetTo(a, service.UDP, k.Port))
			if o.Verdict == survey.Drops && !o.Sources {
				found = append(found, Finding{
					Severity: Problem, Subject: "knock_ports",
					Text:   fmt.Sprintf("%s drops what comes to udp/%d on %s before a knock can be seen", o.At, k.Port, a.link),
					Advice: o.At.Allow(service.Ports{Proto: service.UDP, Low: k.Port, High: k.Port}),
				})
				break
			}
		}
	}
	return found
}

// probePorts are ports on which programs hardly ever listen: they show how closed ports behave.
var probePorts = []uint16{1, 4, 6, 8, 10, 12}

// checkClosed checks whether guarded ports look like the other closed ports of this host.
func checkClosed(c *config.Config, h *host) []Finding {
	if h.rules == nil || c.Firewall.Mode == "admit" || c.Firewall.Backend == "dry-run" || len(c.Services) == 0 {
		return nil
	}
	ways := h.approaches(c)
	for _, port := range probePorts {
		if c.Guards(service.Service{Proto: service.TCP, Port: port}) || len(h.listens(service.TCP, port)) > 0 {
			continue
		}
		o, ok := h.judge(ways, true, service.TCP, port)
		if !ok {
			o, ok = h.judge(ways, false, service.TCP, port)
		}
		if !ok || o.Verdict == survey.Perhaps || o.Sources {
			return nil
		}
		answers := o.Verdict == survey.Passes || o.Answer == survey.Reset
		return hides(c.Firewall.Closed, answers, o.Answer == survey.Unreachable)
	}
	return nil
}

// hides compares the answers of guarded ports with those of others.
func hides(closed string, answers, icmp bool) []Finding {
	switch {
	case answers && closed == "drop":
		return []Finding{{
			Severity: Notice, Subject: "firewall.closed",
			Text:   "the closed ports of this host answer, and guarded ones are silent: a scanner sees which are guarded",
			Advice: `# set closed = "reject", or have a firewall that drops what is not allowed`,
		}}
	case !answers && !icmp && closed == "reject":
		return []Finding{{
			Severity: Notice, Subject: "firewall.closed",
			Text:   "the closed ports of this host are silent, and guarded ones answer: a scanner sees which are guarded",
			Advice: `# set closed = "drop"`,
		}}
	}
	return nil
}

// checkKnockSeen looks for a knock port that the host's firewall accepts although it drops the neighbouring ports: the
// host replies there that the port is closed, which reveals it to a scanner.
func checkKnockSeen(c *config.Config, h *host) []Finding {
	if h.rules == nil {
		return nil
	}
	var found []Finding
	for _, k := range c.KnockPorts {
		if k.Shared || c.Bound() {
			continue
		}
		var commands []string
		for _, a := range h.approaches(c) {
			if command, ok := h.standsOut(c, a, k.Port); ok && !slices.Contains(commands, command) {
				commands = append(commands, command)
			}
		}
		if len(commands) > 0 {
			found = append(found, Finding{
				Severity: Warning, Subject: "knock_ports",
				Text: fmt.Sprintf("the host's firewall lets udp/%d through and drops other ports: a scanner sees that it is "+
					"special, and knocks need no rule", k.Port),
				Advice: pasteLines(commands...),
			})
		}
	}
	return found
}

// standsOut returns the command that shuts a port which the host's firewall accepts although it drops other ports and
// the neighbouring ones.
func (h *host) standsOut(c *config.Config, a approach, port uint16) (string, bool) {
	packet := packetTo(a, service.UDP, port)
	o := h.rules.Judge(packet)
	if o.Verdict != survey.Passes || o.Redirected {
		return "", false
	}
	var at survey.Place
	for _, other := range append([]uint16{port - 1, port + 1}, probePorts...) {
		if other == 0 || isKnockPort(c, other) || c.Guards(service.Service{Proto: service.UDP, Port: other}) ||
			len(h.listens(service.UDP, other)) > 0 {
			continue
		}
		dropped := h.rules.Judge(packetTo(a, service.UDP, other))
		if dropped.Verdict != survey.Drops {
			return "", false
		}
		at = dropped.At
	}
	return h.rules.Shut(packet, o, at)
}

func isKnockPort(c *config.Config, port uint16) bool {
	return slices.ContainsFunc(c.KnockPorts, func(k config.KnockPort) bool { return k.Port == port })
}
