package config

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys/service"
)

// Forwards reports whether the service's ports lead to a machine or to another port of this host.
func (s *Service) Forwards() bool { return len(s.Forward) > 0 }

// LedTo returns the other port of this host to which the service's ports lead; 0: none.
func (s *Service) LedTo() uint16 {
	if s.Forwards() && !s.Forward[0].Addr().IsValid() {
		return s.Forward[0].Port()
	}
	return 0
}

// ledHere returns the ports of this host to which the service's ports lead.
func (s *Service) ledHere() []service.Ports {
	var list []service.Ports
	for _, p := range s.Ports {
		if to := s.LedTo(); to != 0 {
			list = append(list, service.Ports{Proto: p.Proto, Low: to, High: to})
		}
	}
	return list
}

// Here returns the ports of this host on which packets of the service's clients arrive.
func (s *Service) Here() []service.Ports {
	if s.Forwards() {
		return s.ledHere()
	}
	return s.Ports
}

// Led returns the machines to which the service's ports lead, with the ports there.
func (s *Service) Led() iter.Seq2[netip.Addr, []service.Ports] {
	return func(yield func(netip.Addr, []service.Ports) bool) {
		for _, to := range s.Forward {
			var list []service.Ports
			for _, p := range s.Ports {
				list = append(list, service.Ports{Proto: p.Proto, Low: to.Port(), High: to.Port()})
			}
			if to.Addr().IsValid() && !yield(to.Addr(), list) {
				return
			}
		}
	}
}

// Machines returns the addresses of the machines that the service is at or leads to.
func (s *Service) Machines() []netip.Addr {
	all := slices.Clone(s.Addresses)
	for to := range s.Led() {
		all = append(all, to)
	}
	return all
}

var errForward = errors.New(`should be the address and port of a machine behind this host, "198.51.100.5:22" or ` +
	`"[2001:db8::5]:22", a list of both, or another port of this host, ":2222"`)

// forward reads where the ports of a service lead.
func (l *loader) forward(key string, raw rawService, s *Service) {
	key, masquerade := key+".forward", key+".masquerade"
	if l.doc.Has(key) {
		l.readForward(key, raw.Forward, s)
	}
	s.Masquerade = raw.Masquerade
	if l.doc.Has(masquerade) && (!l.doc.Has(key) || s.LedTo() != 0) {
		l.must(masquerade, errors.New("has an effect only with forward to a machine"))
	}
}

func (l *loader) readForward(key string, raw any, s *Service) {
	texts, ok := raw.([]any)
	if !ok {
		texts = []any{raw}
	}
	for _, entry := range texts {
		text, _ := entry.(string)
		to, err := parseForward(text)
		if err != nil {
			l.must(key, err)
			return
		}
		s.Forward = append(s.Forward, to)
	}
	is4 := func(a netip.AddrPort) bool { return a.Addr().Is4() }
	both := len(s.Forward) == 2 && is4(s.Forward[0]) != is4(s.Forward[1]) && s.Forward[0].Addr().IsValid() &&
		s.Forward[1].Addr().IsValid()
	if len(s.Forward) != 1 && !both {
		l.must(key, errForward)
	}
	if slices.ContainsFunc(s.Ports, func(p service.Ports) bool { return p.Low != p.High }) {
		l.must(key, errors.New("ports contains a range, but only single ports can be forwarded"))
	}
	if len(s.Addresses) > 0 {
		l.must(key, errors.New("cannot be combined with addresses: clients reach the machine through this host's port"))
	}
}

func parseForward(text string) (netip.AddrPort, error) {
	if port, here := strings.CutPrefix(text, ":"); here {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return netip.AddrPort{}, errForward
		}
		return netip.AddrPortFrom(netip.Addr{}, uint16(n)), nil
	}
	to, err := netip.ParseAddrPort(text)
	a := to.Addr()
	switch {
	case err != nil || to.Port() == 0 || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast():
		return netip.AddrPort{}, errForward
	case a.IsLoopback():
		return netip.AddrPort{}, fmt.Errorf(`is this host itself: write forward = ":%d"`, to.Port())
	case a.IsLinkLocalUnicast():
		return netip.AddrPort{}, errors.New("is link-local: it may be a different machine on each link")
	}
	return to, nil
}

// forwardCollisions refuses ports with two meanings: a grant for a forwarded port would open what another service has
// there, and a grant of another service would open what the port leads to.
func (l *loader) forwardCollisions(s *Service) {
	if !s.Forwards() {
		return
	}
	key := "service." + s.Name + ".forward"
	if l.cfg.Firewall.Mode == "admit" {
		l.must(key, errors.New(`needs firewall.mode = "guard": with "admit", your own table decides where packets go`))
	}
	for _, k := range l.cfg.KnockPorts {
		if service.Covers(s.ledHere(), service.UDP, k.Port) {
			l.must(key, fmt.Errorf("udp/%d is a knock port", k.Port))
		}
	}
	for i := range l.cfg.Services {
		other := &l.cfg.Services[i]
		switch {
		case other.Name == s.Name && anyOverlap(s.ledHere(), s.Ports):
			l.must(key, errors.New("leads to one of its own ports"))
		case other.Name != s.Name && anyOverlap(s.Ports, other.Ports):
			l.must("service."+s.Name+".ports", fmt.Errorf("service %s has one of these ports too, but a forwarded port "+
				"must belong to one service", other.Name))
		case len(other.Addresses) == 0 && anyOverlap(s.ledHere(), other.Ports):
			l.must(key, fmt.Errorf("service %s guards the port that this leads to: a client that may open one would "+
				"reach both", other.Name))
		}
	}
}

func (s *Service) writeForward(b *strings.Builder) {
	texts := make([]string, len(s.Forward))
	for i, to := range s.Forward {
		if texts[i] = to.String(); !to.Addr().IsValid() {
			texts[i] = ":" + strconv.Itoa(int(to.Port()))
		}
	}
	value := list(texts)
	if len(texts) == 1 {
		value = quote(texts[0])
	}
	changed(b, s.Forwards(), "forward", value, `forward = "198.51.100.5:22"`,
		"a machine behind this host that its port leads to, or another port here: \":2222\"")
	changed(b, s.Masquerade, "masquerade", "true", "masquerade = true",
		"that machine sees this host's address, not the client's")
}
