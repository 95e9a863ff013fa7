package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/keys/service"
)

// Forward leads ports of this host on to a machine behind it or to another port of it, for sources with a grant for
// those ports. A forwarded port is guarded, and no packet for it is delivered to a program here. The place that it
// leads to is guarded too, and no grant opens it directly.
type Forward struct {
	Ports      []service.Ports  // each a single port
	To         []netip.AddrPort // the machine: at most one address of each family
	Port       uint16           // another port of this host; 0: see To
	Masquerade bool             // the machine sees this host's address as the source
}

// Leg is a port of a Forward, and where it leads.
type Leg struct {
	Proto      service.Proto
	Port       uint16
	To         netip.AddrPort // without a valid address: another port of this host
	Masquerade bool
}

// Here reports whether the port leads to another port of this host.
func (l Leg) Here() bool { return !l.To.Addr().IsValid() }

// Place formats where the port leads: an address and a port, or ":2222".
func (l Leg) Place() string {
	if l.Here() {
		return fmt.Sprintf(":%d", l.To.Port())
	}
	return l.To.String()
}

// Legs returns the ports of the forwards, each once for each place that it leads to.
func Legs(fs []Forward) []Leg {
	var legs []Leg
	for _, f := range fs {
		to := slices.Clone(f.To)
		if f.Port != 0 {
			to = append(to, netip.AddrPortFrom(netip.Addr{}, f.Port))
		}
		for _, p := range f.Ports {
			for _, a := range to {
				if a.Addr().IsValid() {
					a = netip.AddrPortFrom(Normal(a.Addr()), a.Port())
				}
				legs = append(legs, Leg{p.Proto, p.Low, a, f.Masquerade})
			}
		}
	}
	return legs
}

// LedHere returns the ports of this host that forwards lead to.
func LedHere(fs []Forward) []service.Ports {
	var ports []service.Ports
	for _, l := range Legs(fs) {
		if l.Here() {
			ports = append(ports, service.Ports{Proto: l.Proto, Low: l.To.Port(), High: l.To.Port()})
		}
	}
	return ports
}

// LedAway returns the machines that forwards lead to.
func LedAway(fs []Forward) []Target {
	var targets []Target
	for _, l := range Legs(fs) {
		if !l.Here() {
			targets = append(targets, Target{Addresses: []netip.Addr{l.To.Addr()},
				Ports: []service.Ports{{Proto: l.Proto, Low: l.To.Port(), High: l.To.Port()}}})
		}
	}
	return targets
}

// checkForwards returns an error for forwards that the guard cannot enforce.
func (c *Spec) checkForwards() error {
	if len(c.Forwards) > 0 && c.Mode != ModeGuard {
		return errors.New("forward needs mode guard: in mode admit your own table decides where packets go")
	}
	for i := range c.Forwards {
		if err := c.Forwards[i].check(c.Guarded); err != nil {
			return err
		}
	}
	from := make(map[Leg]bool)
	for _, l := range Legs(c.Forwards) {
		at := Leg{Proto: l.Proto, Port: l.Port, To: netip.AddrPortFrom(family(l.To.Addr()), 0)}
		if from[at] {
			return fmt.Errorf("%v/%d is forwarded twice", l.Proto, l.Port)
		}
		from[at] = true
	}
	for _, p := range LedHere(c.Forwards) {
		if slices.ContainsFunc(c.Forwards, func(f Forward) bool { return service.Covers(f.Ports, p.Proto, p.Low) }) {
			return fmt.Errorf("a port is forwarded to %v, which is forwarded too", p)
		}
	}
	return nil
}

// family returns the same address for all addresses of a family.
func family(a netip.Addr) netip.Addr {
	switch {
	case !a.IsValid():
		return a
	case a.Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (f *Forward) check(guarded []service.Ports) error {
	for _, p := range f.Ports {
		switch {
		case CheckPorts(p) != nil:
			return CheckPorts(p)
		case p.Low != p.High:
			return fmt.Errorf("%v cannot be forwarded: only single ports can", p)
		case !service.Covers(guarded, p.Proto, p.Low):
			return fmt.Errorf("%v is forwarded but not guarded", p)
		}
	}
	if (f.Port == 0) == (len(f.To) == 0) {
		return errors.New("a port is forwarded either to a machine or to another port of this host")
	}
	for _, a := range f.To {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() ||
			a.Addr().IsLoopback() || LinkLocal(a.Addr()) {
			return fmt.Errorf("a port cannot be forwarded to %v", a)
		}
	}
	return nil
}
