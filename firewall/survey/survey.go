// Package survey predicts what the rule sets of a host would do with the first packet of a flow from outside, without
// sending one or changing anything.
//
// It reads all tables of nf_tables from the kernel, and the tables of iptables as the iptables-save programs print
// them. It leads a packet through the base chains in the order of their priorities: ingress, prerouting, then input,
// or forward for another machine, even if only DNAT leads it there. It leaves out our own tables: the question is
// what the others do.
//
// Each rule is weighed with three values. The known facts about the packet (protocol, port, the address and interface
// at which it arrives, that it is the first of its flow) decide. If a rule depends on anything else, or contains
// something that is not understood here, it may or may not match, and both ways are followed. An answer is certain
// only if all ways lead to it.
//
// The sender is an outsider: an address that no rule names. A rule about certain sources does not match it, and the
// answer reports that it depended on that. An outsider's address is not forged, is routed back by the interface at
// which the packet arrives, and is within every rate limit. A packet may name its sender instead: then rules and sets
// are applied to that address.
package survey

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/firewall/internal/local"
	"sallyport/keys/service"
)

// errNotRead is wrapped by Read's error if it could read only a part of the rule sets.
var errNotRead = errors.New("not all rule sets could be read")

// Packet is the first packet of a flow: a SYN, or a datagram.
type Packet struct {
	Proto   service.Proto
	Port    uint16
	To      netip.Addr // an address of this host, or of another that this host routes to
	In      string     // the interface at which it arrives
	From    netip.Addr // its sender; invalid: an outsider
	Members []Set      // sets of nf_tables that contain its sender
}

// Set names a set of nf_tables.
type Set struct{ Family, Table, Name string }

// Verdict is what happens to a packet.
type Verdict uint8

// Verdicts.
const (
	Passes  Verdict = iota // on every way through the rules
	Drops                  // on every way
	Perhaps                // it may be dropped: some ways through the rules drop it
)

// Answer is what the sender of a dropped packet receives.
type Answer uint8

// Answers.
const (
	Silence     Answer = iota // nothing
	Reset                     // a TCP reset, as from a closed port
	Unreachable               // an ICMP error
)

// Outcome is what the rules do with a packet.
type Outcome struct {
	Verdict Verdict
	At      Place  // the place that drops it, or may; zero if it passes
	Answer  Answer // what the sender receives if it is dropped
	Sources bool   // the outcome may differ for another source: a rule that names sources did not match

	Untracked Verdict // Drops: certainly not tracked; Perhaps: possibly not; Passes: tracked
	Notrack   Place   // the rule that leaves it untracked, or may

	Redirected bool           // DNAT leads it to another address or port, or may
	Forwarded  netip.AddrPort // its destination if it leaves this host; zero: it stays

	accepts []spot // the rules that accept it, at most one for each base chain
}

// Link is a network interface of this host.
type Link struct {
	Name     string
	AltNames []string // names that rules do not use
	Index    int
	Up       bool
	Loopback bool
	Prefixes []netip.Prefix // addresses with the length of their networks
	Local    []netip.Prefix // addresses that local routes make this host's, beyond Prefixes
	Bridge   *Bridge        // nil: not a bridge
	lower    int            // for a VLAN: the index of the interface below it
}

// Bridge describes a bridge.
type Bridge struct {
	Ports int
	// Calls4 and Calls6 report whether forwarded packets pass through the rules whatever the sysctls
	// net.bridge.bridge-nf-call-iptables and -ip6tables are set to.
	Calls4, Calls6 bool
}

// Is reports whether name is one of the interface's names.
func (l Link) Is(name string) bool { return l.Name == name || slices.Contains(l.AltNames, name) }

// Own reports whether an address is this host's by this interface.
func (l Link) Own(a netip.Addr) bool {
	return slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Addr() == a }) ||
		slices.ContainsFunc(l.Local, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Ruleset is the result of Read. Only one goroutine at a time may call its methods.
type Ruleset struct {
	Links []Link

	// Marks are the routing rules that match a packet mark.
	Marks []local.Rule

	tables map[tableKey]*table
	bases  []*chain // by priority
	sets   setReader
	toward func(netip.Addr) (int, error) // returns the index of the interface by which an address is reached
	close  func() error
}

// Toward returns the interface by which an address is reached, and by which its packets arrive, unless routing is
// asymmetric.
func (r *Ruleset) Toward(to netip.Addr) (Link, error) {
	if r.toward == nil {
		return Link{}, errors.ErrUnsupported
	}
	index, err := r.toward(to)
	if err != nil {
		return Link{}, err
	}
	i := slices.IndexFunc(r.Links, func(l Link) bool { return l.Index == index })
	if i < 0 {
		return Link{}, fmt.Errorf("no interface %d, by which %v is reached", index, to)
	}
	return r.Links[i], nil
}

// Bridge returns the bridge by which an address of another machine is reached, directly or by a VLAN on it.
func (r *Ruleset) Bridge(to netip.Addr) (Link, bool) {
	at, err := r.Toward(to)
	if err != nil {
		return Link{}, false // no route leads there
	}
	for range r.Links { // bounded, in case of a loop
		if at.Bridge != nil {
			return at, true
		}
		i := slices.IndexFunc(r.Links, func(l Link) bool { return l.Index == at.lower })
		if i < 0 {
			break
		}
		at = r.Links[i]
	}
	return Link{}, false
}

// Close releases what reading sets needs. No other method may be called after it.
func (r *Ruleset) Close() error {
	if r.close == nil {
		return nil
	}
	return r.close()
}

// Table is a table of nf_tables.
type Table struct {
	Family, Name string
	Owned        bool // a process owns it: no other can change it
	Persistent   bool // it stays when its owner ends
}

// Table returns the table of nf_tables of that family and name.
func (r *Ruleset) Table(family, name string) (Table, bool) {
	t, ok := r.tables[tableKey{nftables, family, name}]
	if !ok {
		return Table{}, false
	}
	return Table{Family: family, Name: name, Owned: t.owned, Persistent: t.persistent}, true
}

// Chain reports whether an iptables table of IPv4 or IPv6 has a chain of that name.
func (r *Ruleset) Chain(family, table, name string) bool {
	for key, t := range r.tables {
		if key.family == family && key.name == table && t.chains[name] != nil {
			return true
		}
	}
	return false
}
