package iptables

import (
	"errors"
	"fmt"
	"slices"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
)

// netSets are the sets that leases for networks are elements of. The kernel looks for the networks of each width that a
// set has, so they may contain each other, and each ends at its own time.
var netSets = []leaseSet{
	{setNets, ipset.HashNetPort, false}, {setNets, ipset.HashNetPort, true},
	{setNetsAt, ipset.HashIPPortNet, false}, {setNetsAt, ipset.HashIPPortNet, true},
}

// letsInNetworks reports whether grants may be for networks: only then are there sets and rules for them. To load the
// rules takes the programs long, so they are there as soon as a client may ask.
func (b *Backend) letsInNetworks() bool { return b.Spec.Networks || len(b.Spec.Spans) > 0 }

// Widen adds the sets and the rules for networks, which are of any width.
func (b *Backend) Widen(spec guard.Spec, _ bool) error {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	before, ready := b.Spec, b.letsInNetworks()
	b.Spec = spec
	if ready || !b.letsInNetworks() {
		return nil
	}
	var err error
	for _, s := range netSets {
		err = errors.Join(err, b.Sets.Replace(b.AddressSet(s.name, s.kind, s.v6), []ipset.Member{witness(s.kind, s.v6)}))
	}
	if err == nil {
		err = b.loadRules()
	}
	if err != nil {
		b.Spec = before
		b.doubt()
	}
	return err
}

// leaseSets returns the sets that there are.
func (b *Backend) leaseSets() []leaseSet {
	if b.letsInNetworks() {
		return slices.Concat(leaseSets, netSets)
	}
	return leaseSets
}

// lacks returns an error if there are no rules for the network of a live lease.
func (b *Backend) lacks(ls []guard.Lease) error {
	for _, l := range ls {
		if l.Bits != 0 && l.Remaining > 0 && !b.letsInNetworks() {
			return fmt.Errorf("%w: it has no rules for networks", guard.ErrGone)
		}
	}
	return nil
}

// setOfNetwork returns the set that an element for a network belongs to.
func setOfNetwork(e guard.Element) leaseSet {
	if e.To.IsValid() {
		return leaseSet{setNetsAt, ipset.HashIPPortNet, e.Source.Is6()}
	}
	return leaseSet{setNets, ipset.HashNetPort, e.Source.Is6()}
}

// networkMember returns the element of a network's lease.
func networkMember(l guard.Lease) ipset.Member {
	m := ipset.Member{IP: l.Source, Bits: l.Bits, Proto: l.Proto, Port: l.Port, Seconds: ipset.Seconds(l.Remaining)}
	if l.To.IsValid() {
		m.IP, m.IP2 = l.To, l.Source
	}
	return m
}

// granted returns the conditions under which a packet has a grant at a place.
func (s *script) granted(p place) []string {
	conditions := []string{s.in(p.grants, p.in)}
	if s.r.Nets {
		conditions = append(conditions, s.in(p.nets, p.netsIn)+" -m addrtype ! --src-type LOCAL")
	}
	return conditions
}

// grantedOut does the same for packets that leave.
func (s *script) grantedOut(p place) []string {
	conditions := []string{s.in(p.grants, p.out)}
	if s.r.Nets {
		conditions = append(conditions, s.in(p.nets, p.netsOut)+" -m addrtype ! --dst-type LOCAL")
	}
	return conditions
}
