package firewall

import (
	"net/netip"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// unmoved returns the holding's ports that lead under n where they lead under c. A grant is for one place: it does not
// move to another one.
func (c *Config) unmoved(n *Config, h *ledger.Holding) []service.Ports {
	was, is := guard.Legs(c.Forwards), guard.Legs(n.Forwards)
	if h.To.IsValid() || len(was)+len(is) == 0 {
		return h.Ports
	}
	var stay []service.Ports
	h.Each(func(e guard.Element) {
		if place(was, e) == place(is, e) {
			stay = append(stay, service.Ports{Proto: e.Proto, Low: e.Port, High: e.Port})
		}
	})
	return within(h.Ports, stay)
}

// place returns where an element's port leads packets from its source; the zero value: nowhere.
func place(legs []guard.Leg, e guard.Element) netip.AddrPort {
	for _, l := range legs {
		if l.Proto == e.Proto && l.Port == e.Port && (l.Here() || l.To.Addr().Is6() == e.Source.Is6()) {
			return l.To
		}
	}
	return netip.AddrPort{}
}
