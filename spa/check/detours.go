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

// checkDetours looks for rules that redirect an unguarded port to a guarded one, or to the destination of a guarded
// one.
func checkDetours(c *config.Config, h *host) []Finding {
	if h.rules == nil || c.Firewall.Backend == "dry-run" || len(c.Services) == 0 || !h.rules.Leads() {
		return nil
	}
	s := detourSearch{c: c, h: h, guarded: c.Guarded(), found: make(map[string]*led)}
	for _, proto := range []service.Proto{service.TCP, service.UDP} {
		for _, way := range h.everyWay(c) {
			s.look(way, proto)
		}
	}
	var found []Finding
	for _, key := range s.order {
		found = append(found, s.found[key].finding())
	}
	return found
}

// Addresses of no machine (RFC 2544, RFC 5180) stand for all destinations beyond this host.
var (
	elsewhere4 = netip.MustParseAddr("198.18.0.1")
	elsewhere6 = netip.MustParseAddr("2001:2::1")
)

func isElsewhere(a netip.Addr) bool { return a == elsewhere4 || a == elsewhere6 }

// everyWay returns the paths of strangers' packets: to each address of each interface, and last through this host.
func (h *host) everyWay(c *config.Config) []approach {
	var here, through []approach
	for _, l := range h.untrusted(c) {
		for _, a := range h.reachedBy(l) {
			here = append(here, approach{link: l.Name, to: a})
		}
		through = append(through, approach{link: l.Name, to: elsewhere4}, approach{link: l.Name, to: elsewhere6})
	}
	return append(here, through...)
}

// detourSearch collects the findings about each rule.
type detourSearch struct {
	c       *config.Config
	h       *host
	guarded []service.Ports
	found   map[string]*led
	order   []string
}

// ending is where a guarded port leads.
type ending struct {
	guarded service.Ports
	detour  survey.Detour
	ports   service.Ports // at detour.To: as many as are redirected there
}

// look checks all ports of a protocol on one path.
func (s *detourSearch) look(way approach, proto service.Proto) {
	ends := s.ends(way, proto)
	marked := slices.Clone(s.guarded)
	for _, e := range ends {
		marked = append(marked, e.ports)
	}
	for _, ports := range s.h.rules.PortRanges(proto, marked...) {
		if service.Covers(s.guarded, proto, ports.Low) {
			continue
		}
		detours := s.h.rules.Detours(packetTo(way, proto, ports.Low))
		for _, d := range detours {
			if d.Verdict != survey.Drops {
				s.judge(way, ports, d, ends)
			}
		}
		if len(detours) == 0 {
			s.direct(way, ports, ends)
		}
	}
}

func packetTo(way approach, proto service.Proto, port uint16) survey.Packet {
	return survey.Packet{Proto: proto, Port: port, To: way.to, In: way.link, From: way.from, Members: way.as}
}

// ends returns where the guarded ports of this host lead.
func (s *detourSearch) ends(way approach, proto service.Proto) (ends []ending) {
	if isElsewhere(way.to) {
		return nil
	}
	for _, ports := range s.h.rules.PortRanges(proto, s.guarded...) {
		if !service.Covers(s.guarded, proto, ports.Low) {
			continue
		}
		for _, d := range s.h.rules.Detours(packetTo(way, proto, ports.Low)) {
			ends = append(ends, ending{ports, d, ledTo(ports, d)})
		}
	}
	return ends
}

// ledTo returns the ports to which a range is redirected: each to itself, or all to one.
func ledTo(ports service.Ports, d survey.Detour) service.Ports {
	if d.To.Port() == ports.Low {
		return ports
	}
	return service.Ports{Proto: ports.Proto, Low: d.To.Port(), High: d.To.Port()}
}

// judge reports a detour of unguarded ports if it lets strangers past the guard.
func (s *detourSearch) judge(way approach, ports service.Ports, d survey.Detour, ends []ending) {
	to := service.Service{Proto: ports.Proto, Port: d.To.Port()}
	it := "it"
	if !d.Sure {
		it = "some of it" // from certain sources, or on a condition that cannot be evaluated
	}
	in, severity := letsIn(d.Verdict)
	switch {
	case d.Socket && s.shutsHanded():
		s.say(way, ports, d, Warning, fmt.Sprintf("hands %s to what listens on %s (TPROXY): the guard shuts this way", it,
			to)).advice = func(ports []service.Ports) string {
			if s.c.Guards(to) {
				return d.Remove(ports[0])
			}
			return d.Remove(ports[0]) + "\n# or, if it is wanted, tproxy = true under [firewall]"
		}
	case d.Socket && s.c.Guards(to):
		s.say(way, ports, d, severity, fmt.Sprintf("hands %s to what listens on the guarded %s (TPROXY), and the guard "+
			"cannot see that: %s, if it takes such packets (IP_TRANSPARENT)", it, to, in))
	case !d.Socket && (d.Here && s.c.Guards(to) || s.isTarget(d.To, ports.Proto)):
		s.say(way, ports, d, s.shut(severity), fmt.Sprintf("leads %s to the guarded %s: %s", it,
			s.place(d, to), s.shutText(in, to)))
	default:
		i := slices.IndexFunc(ends, func(e ending) bool {
			return e.detour.To.Addr() == d.To.Addr() &&
				e.ports.Contains(to.Proto, to.Port)
		})
		if i >= 0 {
			s.say(way, ports, d, severity, fmt.Sprintf("leads %s to %s, where the guarded %s leads too: %s", it,
				d.To, ends[i].guarded, in))
		}
	}
}

// letsIn describes what a verdict about a path without a guard means.
func letsIn(v survey.Verdict) (string, Severity) {
	if v == survey.Perhaps {
		return "strangers may get in there", Warning
	}
	return "strangers get in there", Problem
}

func (s *detourSearch) place(d survey.Detour, to service.Service) string {
	if d.Here {
		return to.String()
	}
	return fmt.Sprintf("%s at %s", to, d.To.Addr())
}

// shut and shutText describe what the guard shuts behind the detour. In mode admit there is no guard.
func (s *detourSearch) shut(severity Severity) Severity {
	if s.c.Firewall.Mode == "admit" {
		return severity
	}
	return Warning
}

func (s *detourSearch) shutText(in string, to service.Service) string {
	if s.c.Firewall.Mode == "admit" {
		return in
	}
	return fmt.Sprintf("the guard shuts this way too, to everyone without a grant for %s", to)
}

// shutsHanded reports whether the guard drops packets that TPROXY assigns to sockets.
func (s *detourSearch) shutsHanded() bool {
	return s.c.Firewall.Mode != "admit" && !s.c.Firewall.TPROXY
}

// isTarget reports whether a service is at this address and port.
func (s *detourSearch) isTarget(to netip.AddrPort, proto service.Proto) bool {
	return slices.ContainsFunc(s.c.Services, func(one config.Service) bool {
		return slices.Contains(one.Addresses, to.Addr()) && service.Covers(one.Ports, proto, to.Port())
	})
}

// direct reports unguarded ports of this host to which a guarded port is redirected.
func (s *detourSearch) direct(way approach, ports service.Ports, ends []ending) {
	at := service.Service{Proto: ports.Proto, Port: ports.Low}
	for _, e := range ends {
		if !e.detour.Here || !e.ports.Contains(at.Proto, at.Port) || !s.h.mayListen(at) {
			continue
		}
		o := s.h.rules.Judge(packetTo(way, at.Proto, at.Port))
		if o.Verdict == survey.Drops {
			continue
		}
		in, severity := letsIn(o.Verdict)
		s.say(way, ports, e.detour, severity, fmt.Sprintf("leads the guarded %s to it: %s", e.guarded,
			in)).advice = func(ports []service.Ports) string {
			return fmt.Sprintf("# add %s to the ports of service.%s", quoted(ports),
				serviceOf(s.c, service.Service{Proto: e.guarded.Proto, Port: e.guarded.Low}))
		}
	}
}

// mayListen reports whether a program listens on a port, or may because that is unknown.
func (h *host) mayListen(s service.Service) bool {
	return h.listeners == nil || len(h.listensForOthers(s.Proto, s.Port)) > 0
}

// led is the finding about the ports that one rule redirects.
type led struct {
	said
	through bool // only on their way to other machines
	advice  func([]service.Ports) string
}

// say records a finding. A finding about a port of this host is not repeated for packets that pass through.
func (s *detourSearch) say(way approach, ports service.Ports, d survey.Detour, severity Severity, text string) *led {
	key := d.At.String() + text
	if s.found[key] == nil {
		s.found[key] = &led{
			said:    said{Finding: Finding{Severity: severity, Text: d.At.String() + " " + text}},
			through: isElsewhere(way.to),
			advice: func(ports []service.Ports) string {
				if isElsewhere(way.to) {
					return d.Remove(ports[0])
				}
				return d.Remove(ports[0]) + fmt.Sprintf("\n# or make it a service of its own, with ports = [%s]", quoted(ports))
			},
		}
		s.order = append(s.order, key)
	}
	s.found[key].add(ports)
	return s.found[key]
}

func (l *led) finding() Finding {
	f := l.Finding
	f.Subject = portList(l.ports)
	f.Advice = l.advice(l.ports)
	if l.through {
		f.Subject += " to other machines"
	}
	return f
}

func quoted(ports []service.Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = fmt.Sprintf("%q", p)
	}
	return strings.Join(texts, ", ")
}
