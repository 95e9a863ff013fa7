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

// approach is a path to this host from outside: one of its addresses, and the interface in front of it.
type approach struct {
	link string
	to   netip.Addr
	from netip.Addr   // the sender; not valid: a stranger
	as   []survey.Set // sets in which a grant has put the sender
}

// approaches returns the paths of strangers, one for each interface and family: on the interfaces where knocks are
// expected, or else those of default routes, or else all.
func (h *host) approaches(c *config.Config) []approach {
	chosen := c.Capture.Interfaces
	if len(chosen) == 0 {
		chosen = h.defaults
	}
	var all []approach
	for _, l := range h.untrusted(c) {
		if len(chosen) == 0 || slices.ContainsFunc(chosen, l.Is) {
			all = append(all, h.approachesBy(l)...)
		}
	}
	return all
}

// waysTo returns the paths to one address of this host: on its interface, or on all if that is the loopback.
func (h *host) waysTo(c *config.Config, to netip.Addr) []approach {
	for _, l := range h.untrusted(c) {
		if l.Own(to.WithZone("")) {
			return []approach{{link: l.Name, to: to}}
		}
	}
	if !h.has(to) {
		return nil
	}
	return h.waysThrough(c, to)
}

// untrusted returns the interfaces where strangers may be.
func (h *host) untrusted(c *config.Config) []survey.Link {
	return slices.DeleteFunc(slices.Clone(h.links), func(l survey.Link) bool {
		return !l.Up || l.Loopback || slices.Contains(c.Firewall.TrustedInterfaces, l.Name)
	})
}

func (h *host) approachesBy(l survey.Link) []approach {
	var found []approach
	for _, is4 := range []bool{true, false} {
		for _, a := range h.reachedBy(l) {
			if a.Is4() == is4 {
				found = append(found, approach{link: l.Name, to: a})
				break
			}
		}
	}
	return found
}

// reachedBy returns the addresses of this host that are reachable from outside on an interface: its own first, then one
// of each of its local routes and of those on the loopback.
func (h *host) reachedBy(l survey.Link) []netip.Addr {
	var found []netip.Addr
	for _, prefix := range l.Prefixes {
		if a := prefix.Addr(); !a.IsLinkLocalUnicast() {
			found = append(found, a)
		}
	}
	for _, by := range h.links {
		if by.Index != l.Index && !by.Loopback {
			continue
		}
		for _, prefix := range by.Local {
			if a := prefix.Addr(); prefix.IsSingleIP() {
				found = append(found, a)
			} else {
				found = append(found, a.Next()) // the first may be the network address
			}
		}
	}
	return found
}

// judge returns the outcome for a port in one family: the best of all paths to the host.
func (h *host) judge(ways []approach, is4 bool, proto service.Proto, port uint16,
	members ...survey.Set) (survey.Outcome, bool) {
	var best survey.Outcome
	found := false
	for _, a := range ways {
		if a.to.Is4() != is4 {
			continue
		}
		packet := packetTo(a, proto, port)
		packet.Members = slices.Concat(packet.Members, members)
		o := h.rules.Judge(packet)
		if !found || rank(o) < rank(best) {
			best, found = o, true
		}
	}
	return best, found
}

// rank orders outcomes, with the ones that let in first.
func rank(o survey.Outcome) int {
	return [...]int{survey.Passes: 0, survey.Perhaps: 1, survey.Drops: 2}[o.Verdict]
}

// checkTables checks what other tables do with the ports that grants open.
func checkTables(c *config.Config, h *host) []Finding {
	if h.rules == nil {
		return nil
	}
	if c.Bound() {
		return append(checkKnocksPass(c, h), checkGrantsPass(c, h)...)
	}
	return checkGrantsPass(c, h)
}

// checkKnocksPass checks what the host's firewall does with knocks to a bound socket.
func checkKnocksPass(c *config.Config, h *host) []Finding {
	to := destination{ways: h.approaches(c)}
	for _, k := range c.KnockPorts {
		to.ports = append(to.ports, service.Ports{Proto: service.UDP, Low: k.Port, High: k.Port})
	}
	return collect([]destination{to}, h, func(o survey.Outcome) (Finding, survey.Place) {
		if o.Verdict == survey.Passes {
			return Finding{}, o.At
		}
		severity := Problem
		if o.Verdict == survey.Perhaps || o.Sources {
			severity = Notice
		}
		return Finding{Severity: severity, Text: "drops knocks to %s, at least some: a server with capture.mode = \"udp\" " +
			"does not get them"}, o.At
	})
}

// checkGrantsPass checks what other tables do with the ports that grants open.
func checkGrantsPass(c *config.Config, h *host) []Finding {
	if c.Firewall.Backend == "dry-run" {
		return nil
	}
	if c.Firewall.Mode == "admit" {
		return append(checkAdmit(c, h, h.approaches(c)), checkUntracked(c, h)...)
	}
	found := collect(h.destinations(c), h, func(o survey.Outcome) (Finding, survey.Place) {
		if o.Sources && h.from.IsValid() {
			return Finding{}, o.At // checkFrom reports whether that concerns the client
		}
		return blocked(o), o.At
	})
	return append(found, checkUntracked(c, h)...)
}

// destination is ports that grants open, and the paths to them.
type destination struct {
	ports []service.Ports
	ways  []approach
}

// destinations returns this host, and each address of a service.
func (h *host) destinations(c *config.Config) []destination {
	here := destination{ways: h.approaches(c)}
	var others []destination
	for _, s := range c.Services {
		if len(s.Addresses) == 0 {
			here.ports = append(here.ports, s.Here()...)
		}
		for _, to := range s.Addresses {
			others = append(others, destination{s.Ports, h.waysBy(c, to)})
		}
		for to, ports := range s.Led() {
			others = append(others, destination{ports, h.waysBy(c, to)})
		}
	}
	return append([]destination{here}, others...)
}

// waysBy returns the paths to an address of this host or of a machine behind it.
func (h *host) waysBy(c *config.Config, to netip.Addr) []approach {
	if ways := h.waysTo(c, to); len(ways) > 0 {
		return ways
	}
	return h.waysThrough(c, to)
}

// waysThrough returns the paths to an address on each interface where strangers arrive.
func (h *host) waysThrough(c *config.Config, to netip.Addr) []approach {
	var ways []approach
	for _, a := range h.approaches(c) {
		if a.to.Is4() == to.Is4() {
			ways = append(ways, approach{link: a.link, to: to})
		}
	}
	return ways
}

// blocked returns the finding for an outcome that does not let in, else the zero Finding.
func blocked(o survey.Outcome) Finding {
	switch {
	case o.Verdict == survey.Passes:
		return Finding{}
	case o.Verdict == survey.Perhaps:
		return Finding{Severity: Notice, Text: "may drop new connections to %s: a condition in it cannot be evaluated here"}
	case o.Sources:
		return Finding{Severity: Notice, Text: "drops new connections to %s, except from certain addresses: a client with " +
			"a grant for another address does not get in"}
	case o.Forwarded.IsValid() && o.Redirected:
		return Finding{Severity: Problem, Text: "drops packets redirected from %s to " + o.Forwarded.String() +
			": the guard cannot open what another table drops"}
	case o.Forwarded.IsValid():
		return Finding{Severity: Problem, Text: "drops new connections to %s at " + o.Forwarded.Addr().String() +
			": the guard cannot open what another table drops"}
	}
	return Finding{Severity: Problem, Text: "drops new connections to %s: the guard cannot open what another table drops"}
}

// checkUntracked looks for ports whose connections are not tracked.
func checkUntracked(c *config.Config, h *host) []Finding {
	return collect(h.destinations(c), h, func(o survey.Outcome) (Finding, survey.Place) {
		if o.Untracked == survey.Passes {
			return Finding{}, o.Notrack
		}
		return Finding{Severity: Notice, Text: "leaves connections to %s untracked: a session ends when its grant does",
			Advice: "# let connection tracking see these ports"}, o.Notrack
	})
}

// collect judges every guarded port in both families, and returns one finding for each place.
func collect(to []destination, h *host, word func(survey.Outcome) (Finding, survey.Place)) []Finding {
	type subject struct {
		at   survey.Place
		text string
	}
	var order []subject
	byPlace := make(map[subject]*said)
	say := func(f Finding, at survey.Place, ports service.Ports, from netip.Addr) {
		if f.Severity == "" {
			return
		}
		key := subject{at, f.Text}
		if byPlace[key] == nil {
			byPlace[key] = &said{Finding: f, at: at, from: from}
			order = append(order, key)
		}
		byPlace[key].add(ports)
	}
	for _, d := range to {
		for _, is4 := range []bool{true, false} {
			each(d.ports, func(proto service.Proto, port uint16) {
				if o, ok := h.judge(d.ways, is4, proto, port); ok {
					f, at := word(o)
					say(f, at, single(proto, port), d.ways[0].from)
				}
			})
		}
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
	from  netip.Addr // the client; not valid: strangers
	ports []service.Ports
}

// add joins ports to the range that they continue.
func (s *said) add(ports service.Ports) {
	for i := range s.ports {
		p := &s.ports[i]
		if p.Contains(ports.Proto, ports.Low) && ports.High <= p.High {
			return
		}
		if p.Proto == ports.Proto && p.High+1 == ports.Low {
			p.High = ports.High
			return
		}
	}
	s.ports = append(s.ports, ports)
}

func (s *said) finding() Finding {
	f := s.Finding
	f.Subject = s.at.String()
	f.Text = fmt.Sprintf(f.Text, portList(s.ports))
	if f.Advice != "" {
		return f
	}
	var commands []string
	for _, p := range s.ports {
		command := s.at.Allow(p)
		if s.from.IsValid() {
			command = s.at.AllowFrom(s.from, p)
		}
		if !slices.Contains(commands, command) { // a command may be for all ports
			commands = append(commands, command)
		}
	}
	f.Advice = pasteLines(commands...)
	return f
}

func portList(ports []service.Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}

func single(proto service.Proto, port uint16) service.Ports {
	return service.Ports{Proto: proto, Low: port, High: port}
}

// each calls do for every port of the ranges.
func each(ranges []service.Ports, do func(service.Proto, uint16)) {
	for _, p := range ranges {
		for port := int(p.Low); port <= int(p.High); port++ {
			do(p.Proto, uint16(port))
		}
	}
}

// checkAdmit checks the administrator's own table in mode admit: it must keep strangers out, and let the members of the
// sets in.
func checkAdmit(c *config.Config, h *host, ways []approach) []Finding {
	found := collect(h.destinations(c), h, func(o survey.Outcome) (Finding, survey.Place) {
		return open(c, o),
			survey.Place{}
	})
	for i := range found {
		found[i].Subject = "firewall.mode"
		if found[i].Severity != Warning {
			found[i].Advice = fmt.Sprintf("# let the table %s %s drop it, except for the members of the set",
				c.Firewall.Admit.Family, c.Firewall.Admit.Table)
		}
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

// open returns the finding for an outcome that lets a stranger in.
func open(c *config.Config, o survey.Outcome) Finding {
	switch o.Verdict {
	case survey.Passes:
		return Finding{Severity: Problem, Text: "%s is open to strangers: with mode = \"admit\" nothing but the table " +
			c.Firewall.Admit.Table + " keeps it shut, and that does not"}
	case survey.Perhaps:
		return Finding{Severity: Notice, Text: "%s may be open to strangers: a rule of another table cannot be evaluated " +
			"here: " + o.At.String()}
	}
	if chain, ok := o.At.Policy(); ok && o.Verdict == survey.Drops {
		return Finding{Severity: Warning, Text: "%s is shut to strangers by a policy alone (" + o.At.String() + "): each " +
			"time the rules are loaded, the kernel sets it an instant after the rules, and packets pass",
			Advice: "nft add rule " + chain + " drop   # and in the file that the host loads, as the chain's last rule"}
	}
	return Finding{}
}

// checkAdmitted checks whether the members of a set are let in.
func checkAdmitted(c *config.Config, h *host, ways []approach, is4 bool, family, name string) []Finding {
	set := survey.Set{Family: c.Firewall.Admit.Family, Table: c.Firewall.Admit.Table, Name: name}
	s := said{Finding: Finding{Severity: Problem}}
	each(c.Guarded(), func(proto service.Proto, port uint16) {
		if o, ok := h.judge(ways, is4, proto, port, set); ok && o.Verdict == survey.Drops {
			s.at = o.At
			s.add(single(proto, port))
		}
	})
	if len(s.ports) == 0 {
		return nil
	}
	addr := map[bool]string{true: "ip", false: "ip6"}[is4]
	return []Finding{{
		Severity: Problem, Subject: "firewall.admit",
		Text: fmt.Sprintf("over %s no rule admits the members of the set %s to %s: %s drops them too", family, name,
			portList(s.ports), s.at),
		Advice: fmt.Sprintf("# add a rule to the chain that drops: %s saddr . meta l4proto . th dport @%s accept", addr,
			name),
	}}
}
