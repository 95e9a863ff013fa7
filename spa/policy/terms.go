package policy

import (
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
)

// terms are the conditions on which a service or a port may be opened.
type terms struct {
	ports  []service.Ports
	least  time.Duration    // for how long when the client does not say
	most   time.Duration    // for how long at most
	within [][]service.Span // the hours: within all of these
	at     []netip.Addr     // where the service is; none: at this host
	runs   bool             // it runs a program
	once   bool             // the first connection takes the grant
	led    []netip.AddrPort // where its ports lead; none: nowhere
}

// reached reports whether a grant is for the addresses of the service.
func (t terms) reached(g firewall.Grant) bool {
	if len(g.To) == 0 {
		return len(t.at) == 0
	}
	return !slices.ContainsFunc(g.To, func(a netip.Addr) bool { return !slices.Contains(t.at, a) })
}

// toward returns the service's addresses of the source's family. It returns false if the service has addresses, but
// none of that family, or leads only where the source cannot be led.
func (t terms) toward(source netip.Addr) ([]netip.Addr, bool) {
	if !leads(t.led, source) {
		return nil, false
	}
	var to []netip.Addr
	for _, a := range t.at {
		if a.Unmap().Is4() == source.Unmap().Is4() {
			to = append(to, a)
		}
	}
	return to, len(to) > 0 || len(t.at) == 0
}

// leads reports whether ports that lead there lead packets from the source: to another port of this host, or to a
// machine of the source's family. No router forwards packets from a link-local address.
func leads(led []netip.AddrPort, source netip.Addr) bool {
	return len(led) == 0 || slices.ContainsFunc(led, func(to netip.AddrPort) bool {
		a, from := to.Addr(), source.Unmap()
		return !a.IsValid() || a.Is4() == from.Is4() && !from.IsLinkLocalUnicast()
	})
}

// termsOf returns the terms for one or more services together: where they differ, the strictest.
func termsOf(ports []service.Ports, services ...config.Service) terms {
	t := terms{ports: ports, least: services[0].For, most: services[0].MaxFor}
	for _, s := range services {
		t.least, t.most = min(t.least, s.For), min(t.most, s.MaxFor)
		t.once = t.once || s.Once
		t.within = append(t.within, s.When)
	}
	return t
}

// terms returns the terms of a service that the client's file names.
func (p *Policy) terms(c *keys.Client, wanted service.Service) (terms, error) {
	t, err := p.find(wanted)
	if err != nil {
		return terms{}, err
	}
	if !allows(c, wanted) {
		return terms{}, &Denial{Reason: spa.ReasonNotAllowed, Service: wanted.String()}
	}
	return t, nil
}

// allows reports whether the client's file names the service: by its name, or by a range that contains the requested
// port.
func allows(c *keys.Client, wanted service.Service) bool {
	if wanted.Name != "" {
		return slices.Contains(c.Allow, wanted.Name)
	}
	return slices.ContainsFunc(c.Allow, func(text string) bool {
		ports, _ := service.ParsePorts(text) // none for a name
		return ports.Contains(wanted.Proto, wanted.Port)
	})
}

// find returns the terms of a service. A raw port is a port of this host, on the terms of every service that it
// belongs to together: adding a service never gives anyone more. A port that no service of this host has cannot be
// opened. A service at other addresses, one that is forwarded, and one with an action, is opened by name only.
func (p *Policy) find(wanted service.Service) (terms, error) {
	if wanted.Name == "" {
		return p.findPort(service.Ports{Proto: wanted.Proto, Low: wanted.Port, High: wanted.Port})
	}
	for _, s := range p.services {
		if s.Name == wanted.Name {
			t := termsOf(s.Ports, s)
			t.at, t.runs, t.led = s.Addresses, s.Action.Any(), s.Forward
			return t, nil
		}
	}
	return terms{}, &Denial{Reason: spa.ReasonNoService, Service: wanted.String()}
}

func (p *Policy) findPort(port service.Ports) (terms, error) {
	var having []config.Service
	for _, s := range p.services {
		if covered([]service.Ports{port}, s.Ports) {
			having = append(having, s)
		}
	}
	here := func(s config.Service) bool { return len(s.Addresses) == 0 }
	named := func(s config.Service) bool { return s.Action.Any() || s.Forwards() }
	if !slices.ContainsFunc(having, here) || slices.ContainsFunc(having, named) {
		return terms{}, &Denial{Reason: spa.ReasonNoService, Service: port.String()}
	}
	return termsOf([]service.Ports{port}, having...), nil
}

// duration returns how long a grant lasts: as requested, or the service's own time if none was requested, limited by
// the service's and the client's maximum.
func (t terms) duration(asked, clientMax time.Duration) time.Duration {
	d := asked
	if d == 0 {
		d = t.least
	}
	d = min(d, t.most)
	if clientMax > 0 {
		d = min(d, clientMax)
	}
	return d
}

// Ports returns the ports of a service, or nil if there is no such service.
func (p *Policy) Ports(service service.Service) []service.Ports {
	t, _ := p.find(service)
	return t.ports
}

// At returns the addresses of a service; the zero Addr is this host.
func (p *Policy) At(service service.Service) []netip.Addr {
	t, _ := p.find(service)
	return places(t.at)
}

func places(at []netip.Addr) []netip.Addr {
	if len(at) == 0 {
		return []netip.Addr{{}}
	}
	return at
}

// Within reports whether the services have every port of the grant, at every address of the grant. A grant without
// ports is within none.
func (p *Policy) Within(g firewall.Grant, services []service.Service) bool {
	if len(g.Ports) == 0 {
		return false
	}
	for _, at := range places(g.To) {
		var there []service.Ports
		for _, service := range services {
			if slices.Contains(p.At(service), at) {
				there = append(there, p.Ports(service)...)
			}
		}
		if !covered(g.Ports, there) {
			return false
		}
	}
	return true
}

// covered reports whether each of the ports is in one of the ranges.
func covered(ports, ranges []service.Ports) bool {
	for _, p := range ports {
		for low := int(p.Low); low <= int(p.High); {
			i := slices.IndexFunc(ranges, func(r service.Ports) bool { return r.Contains(p.Proto, uint16(low)) })
			if i < 0 {
				return false
			}
			low = int(ranges[i].High) + 1
		}
	}
	return true
}
