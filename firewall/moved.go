package firewall

import (
	"net/netip"
	"slices"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// asHeld completes records of new grants: which of them admit one flow, and where their ports lead.
func (c *Config) asHeld(asked []*ledger.Holding) []*ledger.Holding {
	hs := make([]*ledger.Holding, 0, len(asked))
	for _, h := range asked {
		h.Once = c.once(h.Ports)
		hs = append(hs, c.led(h)...)
	}
	return hs
}

// led returns a record in parts: one for each port that leads elsewhere, with its place, and one for the others.
func (c *Config) led(h *ledger.Holding) []*ledger.Holding {
	legs := c.legsOf(h)
	if len(legs) == 0 {
		return []*ledger.Holding{h}
	}
	var hs []*ledger.Holding
	var others []service.Ports
	h.Each(func(e guard.Element) {
		single := []service.Ports{{Proto: e.Proto, Low: e.Port, High: e.Port}}
		to := place(legs, e)
		if to == (netip.AddrPort{}) {
			others = append(others, single...)
			return
		}
		part := *h
		part.Ports, part.Led = single, to
		hs = append(hs, &part)
	})
	return append(hs, partsOf(h, within(h.Ports, others))...)
}

// partsOf returns records for some of a record's ports.
func partsOf(h *ledger.Holding, ports []service.Ports) []*ledger.Holding {
	var hs []*ledger.Holding
	most := ledger.MaxRanges
	if h.To.IsValid() {
		most = 1
	}
	for ranges := range slices.Chunk(ports, most) {
		part := *h
		part.Ports = slices.Clone(ranges)
		hs = append(hs, &part)
	}
	return hs
}

// unmoved returns the ports of a record that lead where they led when it was made. A grant is for one place: it does
// not move to another one. Earlier versions did not record the place, so of their records no port that is led now is
// among them.
func (c *Config) unmoved(h *ledger.Holding) []service.Ports {
	legs := c.legsOf(h)
	if len(legs) == 0 && !h.Leads() {
		return h.Ports
	}
	var stay []service.Ports
	h.Each(func(e guard.Element) {
		if place(legs, e) == h.Led {
			stay = append(stay, service.Ports{Proto: e.Proto, Low: e.Port, High: e.Port})
		}
	})
	return within(h.Ports, stay)
}

// legsOf returns where the ports of a record lead. Ports of destinations lead nowhere else.
func (c *Config) legsOf(h *ledger.Holding) []guard.Leg {
	if len(c.Forwards) == 0 || h.To.IsValid() {
		return nil
	}
	return slices.DeleteFunc(guard.Legs(c.Forwards), func(l guard.Leg) bool {
		return !service.Covers(h.Ports, l.Proto, l.Port)
	})
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

// owner names a grant, of which the ledger may have several records.
type owner struct {
	client, service string
	peer            Peer
	link            uint32
}

func ownerOf(h *ledger.Holding) owner {
	return owner{h.Client, h.Service, Peer{h.Source, h.Bits, h.Lent}, h.Link}
}

// unkept returns the grants of which Keep rejects a part, or that would admit more flows than when they were given.
// They end as a whole.
func (c *Config) unkept(held *ledger.Book) map[owner]bool {
	gone := make(map[owner]bool)
	for h := range held.All() {
		if !c.staysOnce(h) || c.Keep != nil && !c.Keep(grantOf(h)) {
			gone[ownerOf(h)] = true
		}
	}
	return gone
}
