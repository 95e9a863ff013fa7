package survey

import (
	"fmt"
	"net/netip"
	"slices"

	"sallyport/keys/service"
)

// Detour is a rule that leads a packet elsewhere before routing, so that it does not end at the port it was sent to.
type Detour struct {
	At   Place
	To   netip.AddrPort
	Here bool // To is an address of this host
	// Socket says that the packet is unchanged (TPROXY) and goes to a socket of that port: no rule after this one
	// sees the port.
	Socket  bool
	Sure    bool    // it is led there whoever sends it
	Verdict Verdict // what happens to it after the detour
}

// Remove returns the command that removes the detour of ports.
func (d Detour) Remove(ports service.Ports) string {
	switch d.At.tool {
	case docker:
		return fmt.Sprintf("docker ps --filter publish=%s/%s\n# run that container without this port",
			numbers(ports, "-"), ports.Proto)
	case firewalld:
		what := fmt.Sprintf("%s--remove-forward-port=port=%s:proto=%s:toport=%d", d.At.zone(), numbers(ports, "-"),
			ports.Proto, d.To.Port())
		if !d.Here {
			what += ":toaddr=" + d.To.Addr().String()
		}
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	}
	return d.At.remove()
}

// Detours returns the detours that rules make for a packet: for any sender, for certain senders, or possibly. It
// leaves out tables of package firewall.
func (r *Ruleset) Detours(packet Packet) []Detour {
	var noted detours
	p := r.passage(packet)
	p.anybody, p.detours = true, &noted
	var o Outcome
	for _, h := range []hook{ingress, prerouting} {
		if p.arrive(h, &o); o.Verdict == Drops {
			return nil
		}
	}
	found := make([]Detour, len(noted))
	for i, n := range noted {
		found[i] = n.follow()
	}
	return found
}

// detours are the packets that a rule leads elsewhere, in their state at that rule.
type detours []noted

type noted struct {
	passage
	socket bool
	to     netip.AddrPort
	sure   truth
}

// note records that a rule leads a packet to a known place.
func (d *detours) note(p *passage, to netip.AddrPort, socket bool, sure truth) {
	if d == nil || !to.IsValid() {
		return
	}
	*d = append(*d, noted{passage: *p, socket: socket, to: to, sure: sure})
}

// follow continues with the packet as if the rule had matched it.
func (n noted) follow() Detour {
	p := n.passage
	p.detours, p.anybody, p.scratch = nil, false, nil
	d := Detour{At: p.here.place(), To: n.to, Socket: n.socket, Sure: n.sure == yes,
		Here: isLocal(p.rules.Links, n.to.Addr())}
	if n.socket {
		p.local = true
	} else {
		p.redirect = yes
		p.moveTo(n.to)
	}
	var o Outcome
	p.arrive(input, &o)
	d.Verdict = o.Verdict
	return d
}

// PortRanges divides all ports of a protocol into ranges that rules before routing treat alike: no rule compares with
// a port inside one. Rules that compare single bits of a port are not understood. The ranges also end where those of
// marked do.
func (r *Ruleset) PortRanges(proto service.Proto, marked ...service.Ports) []service.Ports {
	begins := []uint16{1}
	for _, p := range r.portsSaid() {
		begins = append(begins, p, p+1) // for 65535 this is 0, which is left out
	}
	for _, m := range marked {
		if m.Proto == proto {
			begins = append(begins, m.Low, m.High+1)
		}
	}
	slices.Sort(begins)
	begins = slices.Compact(begins)
	begins = begins[slices.Index(begins, 1):]
	ranges := make([]service.Ports, len(begins))
	for i, low := range begins {
		ranges[i] = service.Ports{Proto: proto, Low: low, High: 65535}
		if i > 0 {
			ranges[i-1].High = low - 1
		}
	}
	return ranges
}

// portsSaid returns the ports that rules compare with, in tables that see a packet before routing.
func (r *Ruleset) portsSaid() (ports []uint16) {
	var tables []*table
	for _, c := range r.bases {
		if (c.hook == prerouting || c.hook == ingress) && !c.table.ours() && !slices.Contains(tables, c.table) {
			tables = append(tables, c.table)
		}
	}
	for _, t := range tables {
		for _, c := range t.chains {
			for _, one := range c.rules {
				ports = one.says(ports, r.sets)
			}
		}
	}
	return ports
}

// Leads reports whether a rule leads packets elsewhere before routing.
func (r *Ruleset) Leads() bool {
	for _, t := range r.tables {
		if t.ours() {
			continue
		}
		for _, c := range t.chains {
			if slices.ContainsFunc(c.rules, rule.leads) {
				return true
			}
		}
	}
	return false
}
