package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/firewall/survey"
	"sallyport/spa"
	"sallyport/spa/config"
)

// approach is a way to this host from outside: an address of it, and the interface before it.
type approach struct {
	link string
	to   netip.Addr
}

// approaches returns the ways by which strangers come, one for each interface and family: of the
// interfaces that knocks are expected on, or else of those that lead to the world, or else of all.
func (h *host) approaches(c *config.Config) []approach {
	chosen := c.Capture.Interfaces
	if len(chosen) == 0 {
		chosen = h.defaults
	}
	var all []approach
	for _, l := range h.untrusted(c) {
		if len(chosen) == 0 || slices.Contains(chosen, l.Name) {
			all = append(all, approachesBy(l)...)
		}
	}
	return all
}

// waysTo returns the way to one address.
func (h *host) waysTo(c *config.Config, to netip.Addr) []approach {
	for _, l := range h.untrusted(c) {
		if slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Addr() == to.WithZone("") }) {
			return []approach{{l.Name, to}}
		}
	}
	return nil
}

// untrusted returns the interfaces that strangers may be behind.
func (h *host) untrusted(c *config.Config) []survey.Link {
	return slices.DeleteFunc(slices.Clone(h.links), func(l survey.Link) bool {
		return !l.Up || l.Loopback || slices.Contains(c.Firewall.TrustedInterfaces, l.Name)
	})
}

func approachesBy(l survey.Link) []approach {
	var found []approach
	for _, is4 := range []bool{true, false} {
		for _, prefix := range l.Prefixes {
			if a := prefix.Addr(); a.Is4() == is4 && !a.IsLinkLocalUnicast() {
				found = append(found, approach{l.Name, a})
				break
			}
		}
	}
	return found
}

// judge says what becomes of a port in one family: the best that any way to the host offers.
func (h *host) judge(ways []approach, is4 bool, proto spa.Proto, port uint16, members ...survey.Set) (survey.Outcome, bool) {
	var best survey.Outcome
	found := false
	for _, a := range ways {
		if a.to.Is4() != is4 {
			continue
		}
		o := h.rules.Judge(survey.Packet{Proto: proto, Port: port, To: a.to, In: a.link, Members: members})
		if !found || rank(o) < rank(best) {
			best, found = o, true
		}
	}
	return best, found
}

// rank orders outcomes from the one that lets in.
func rank(o survey.Outcome) int {
	return [...]int{survey.Passes: 0, survey.Perhaps: 1, survey.Drops: 2}[o.Verdict]
}

// checkTables asks what other tables do with the ports that grants open.
func checkTables(c *config.Config, h *host) []Finding {
	if h.rules == nil || c.Firewall.Backend == "dry-run" {
		return nil
	}
	ways := h.approaches(c)
	if c.Firewall.Mode == "admit" {
		return append(checkAdmit(c, h, ways), checkUntracked(c, h, ways)...)
	}
	found := collect(c, h, ways, func(o survey.Outcome) (Finding, survey.Place) { return blocked(o), o.At })
	return append(found, checkUntracked(c, h, ways)...)
}

// blocked words an outcome that does not let in; the zero Finding is one that does.
func blocked(o survey.Outcome) Finding {
	switch {
	case o.Verdict == survey.Passes:
		return Finding{}
	case o.Verdict == survey.Perhaps:
		return Finding{Severity: Odd, Text: "may drop new connections to %s: a condition in it cannot be judged from here"}
	case o.Sources:
		return Finding{Severity: Odd, Text: "drops new connections to %s, except from certain addresses: whoever is granted from elsewhere does not get in"}
	case o.Forwarded.IsValid():
		return Finding{Severity: Problem, Text: "drops what is led from %s to " + o.Forwarded.String() + ": the guard cannot open what another table drops"}
	}
	return Finding{Severity: Problem, Text: "drops new connections to %s: the guard cannot open what another table drops"}
}

// checkUntracked looks for ports whose connections are not tracked.
func checkUntracked(c *config.Config, h *host, ways []approach) []Finding {
	return collect(c, h, ways, func(o survey.Outcome) (Finding, survey.Place) {
		if o.Untracked == survey.Passes {
			return Finding{}, o.Notrack
		}
		return Finding{Severity: Odd, Text: "leaves connections to %s untracked: a session ends when its grant does",
			Advice: "let connection tracking see these ports"}, o.Notrack
	})
}

// collect judges every guarded port in both families, and words what is found once for each place.
func collect(c *config.Config, h *host, ways []approach, word func(survey.Outcome) (Finding, survey.Place)) []Finding {
	var order []string
	byPlace := make(map[string]*said)
	for _, is4 := range []bool{true, false} {
		each(c.Guarded(), func(proto spa.Proto, port uint16) {
			o, ok := h.judge(ways, is4, proto, port)
			if !ok {
				return
			}
			f, at := word(o)
			if f.Severity == "" {
				return
			}
			key := at.String() + f.Text
			if byPlace[key] == nil {
				byPlace[key] = &said{Finding: f, at: at}
				order = append(order, key)
			}
			byPlace[key].add(proto, port)
		})
	}
	var found []Finding
	for _, key := range order {
		found = append(found, byPlace[key].finding())
	}
	return found
}

// said is a finding and the ports that it is about.
type said struct {
	Finding
	at    survey.Place
	ports []spa.Ports
}

// add joins a port to the range that it continues.
func (s *said) add(proto spa.Proto, port uint16) {
	for i := range s.ports {
		p := &s.ports[i]
		if p.Contains(proto, port) {
			return
		}
		if p.Proto == proto && p.High+1 == port {
			p.High = port
			return
		}
	}
	s.ports = append(s.ports, spa.Ports{Proto: proto, Low: port, High: port})
}

func (s *said) finding() Finding {
	f := s.Finding
	f.Subject = s.at.String()
	f.Text = fmt.Sprintf(f.Text, portList(s.ports))
	if f.Advice != "" {
		return f
	}
	commands := make([]string, len(s.ports))
	for i, p := range s.ports {
		commands[i] = s.at.Allow(p)
	}
	f.Advice = strings.Join(commands, "; ")
	return f
}

func portList(ports []spa.Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}

// each calls do for every port of the ranges.
func each(ranges []spa.Ports, do func(spa.Proto, uint16)) {
	for _, p := range ranges {
		for port := int(p.Low); port <= int(p.High); port++ {
			do(p.Proto, uint16(port))
		}
	}
}

// checkAdmit looks at the administrator's own table where grants go into it: a stranger has to be
// kept out, and whoever is in a set has to be let in.
func checkAdmit(c *config.Config, h *host, ways []approach) []Finding {
	found := collect(c, h, ways, func(o survey.Outcome) (Finding, survey.Place) { return open(c, o), survey.Place{} })
	for i := range found {
		found[i].Subject = "firewall.mode"
		found[i].Advice = fmt.Sprintf("let the table %s %s drop it but for the members of the set", c.Firewall.Admit.Family, c.Firewall.Admit.Table)
	}
	for _, family := range []struct {
		is4  bool
		name string
		set  string
	}{{true, "IPv4", c.Firewall.Admit.Set4}, {false, "IPv6", c.Firewall.Admit.Set6}} {
		if family.set != "" {
			found = append(found, checkAdmitted(c, h, ways, family.is4, family.name, family.set)...)
		}
	}
	return found
}

// open words an outcome that lets a stranger in.
func open(c *config.Config, o survey.Outcome) Finding {
	switch o.Verdict {
	case survey.Passes:
		return Finding{Severity: Problem, Text: "%s is open to strangers: with mode = \"admit\" nothing but the table " + c.Firewall.Admit.Table + " keeps it shut, and that does not"}
	case survey.Perhaps:
		return Finding{Severity: Odd, Text: "%s may be open to strangers: a rule of another table cannot be judged from here: " + o.At.String()}
	}
	return Finding{}
}

// checkAdmitted looks whether whoever is in a set is let in.
func checkAdmitted(c *config.Config, h *host, ways []approach, is4 bool, family, name string) []Finding {
	set := survey.Set{Family: c.Firewall.Admit.Family, Table: c.Firewall.Admit.Table, Name: name}
	s := said{Finding: Finding{Severity: Problem}}
	each(c.Guarded(), func(proto spa.Proto, port uint16) {
		if o, ok := h.judge(ways, is4, proto, port, set); ok && o.Verdict == survey.Drops {
			s.at = o.At
			s.add(proto, port)
		}
	})
	if len(s.ports) == 0 {
		return nil
	}
	addr := map[bool]string{true: "ip", false: "ip6"}[is4]
	return []Finding{{Problem, "firewall.admit", fmt.Sprintf("over %s no rule lets the members of the set %s in to %s: %s drops them too", family, name, portList(s.ports), s.at),
		fmt.Sprintf("a rule in the chain that drops: %s saddr . meta l4proto . th dport @%s accept", addr, name)}}
}

// checkIngress looks for knocks that are dropped before the sniffer sees them.
func checkIngress(c *config.Config, h *host) []Finding {
	if h.rules == nil {
		return nil
	}
	var found []Finding
	for _, k := range c.KnockPorts {
		for _, a := range h.approaches(c) {
			o := h.rules.AtIngress(survey.Packet{Proto: spa.UDP, Port: k.Port, To: a.to, In: a.link})
			if o.Verdict == survey.Drops && !o.Sources {
				found = append(found, Finding{Problem, "knock_ports", fmt.Sprintf("%s drops what comes to udp/%d on %s before a knock can be seen", o.At, k.Port, a.link),
					o.At.Allow(spa.Ports{Proto: spa.UDP, Low: k.Port, High: k.Port})})
				break
			}
		}
	}
	return found
}

// probePorts are ports on which hardly anything ever listens: what becomes of them is what becomes
// of a closed port.
var probePorts = []uint16{1, 4, 6, 8, 10, 12}

// checkClosed tells whether guarded ports look like the other closed ports of this host.
func checkClosed(c *config.Config, h *host) []Finding {
	if h.rules == nil || c.Firewall.Mode == "admit" || c.Firewall.Backend == "dry-run" || len(c.Services) == 0 {
		return nil
	}
	ways := h.approaches(c)
	for _, port := range probePorts {
		if c.Guards(spa.Service{Proto: spa.TCP, Port: port}) || len(h.listens(spa.TCP, port)) > 0 {
			continue
		}
		o, ok := h.judge(ways, true, spa.TCP, port)
		if !ok {
			o, ok = h.judge(ways, false, spa.TCP, port)
		}
		if !ok || o.Verdict == survey.Perhaps || o.Sources {
			return nil
		}
		answers := o.Verdict == survey.Passes || o.Answer == survey.Reset
		return hides(c.Firewall.Closed, answers, o.Answer == survey.Unreachable)
	}
	return nil
}

// hides compares the answer of guarded ports with that of others.
func hides(closed string, answers, icmp bool) []Finding {
	switch {
	case answers && closed == "drop":
		return []Finding{{Odd, "firewall.closed", "the closed ports of this host answer, and guarded ones are silent: a scanner sees which are guarded",
			`closed = "reject", or a firewall of the host that drops what is not allowed`}}
	case !answers && !icmp && closed == "reject":
		return []Finding{{Odd, "firewall.closed", "the closed ports of this host are silent, and guarded ones answer: a scanner sees which are guarded", `closed = "drop"`}}
	}
	return nil
}
