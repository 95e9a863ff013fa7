// Package survey says what the rule sets of a host would do with a packet that begins a
// flow from outside, without sending one and without changing anything.
//
// It reads every table of nf_tables from the kernel, and the tables of iptables as the
// iptables-save programs print them, and leads a packet through the base chains in the
// order of their priorities: ingress, prerouting, then input, or forward for another
// machine, if only because DNAT leads it there. Our own table is left out: it is asked what the others do.
//
// Each rule is weighed with three values. What is known of the packet (protocol, port, the
// address and interface at which it arrives, that it is the first of its flow) decides; where
// a rule asks for anything else, or says something that is not understood here, it may match
// and may not, and both ways are followed. An answer is certain only if all ways lead to it.
//
// The sender is an outsider: an address that no rule names. A rule about certain sources
// does not match him, and the answer says that it depended on that. He is not forged, has a
// way back through the interface he comes by, and is within every rate limit. A packet may name
// its sender instead: then what rules and sets say about that address holds.
package survey

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/keys/service"
)

// ErrNotRead is wrapped by what Read returns beside a rule set that it could read in part.
var ErrNotRead = errors.New("not all rule sets could be read")

// Packet is the first packet of a flow: a SYN, or a datagram.
type Packet struct {
	Proto   service.Proto
	Port    uint16
	To      netip.Addr // an address of this host, or of another to which it is a router
	In      string     // the interface by which it arrives
	From    netip.Addr // its sender; not valid: an outsider
	Members []Set      // sets of nf_tables that its sender is in
}

// Set names a set of nf_tables.
type Set struct{ Family, Table, Name string }

// Verdict is what becomes of a packet.
type Verdict uint8

// The three verdicts.
const (
	Passes  Verdict = iota // on every way through the rules
	Drops                  // on every way
	Perhaps                // on some ways it is dropped; which is taken cannot be told
)

// Answer is what a sender learns of a packet that is dropped.
type Answer uint8

// What a sender may get.
const (
	Silence     Answer = iota // nothing
	Reset                     // a TCP reset, as from a closed port
	Unreachable               // an ICMP error
)

// Outcome is what the rules do with a packet.
type Outcome struct {
	Verdict Verdict
	At      Place  // what drops it, or may; zero where it passes
	Answer  Answer // what the sender gets where it is dropped
	Sources bool   // another source may fare differently: a rule that names sources was passed by

	Untracked Verdict // Drops: certainly not tracked; Perhaps; Passes: tracked
	Notrack   Place   // what leaves it untracked, or may

	Redirected bool           // DNAT leads it to another address or port, or may
	Forwarded  netip.AddrPort // where it leaves for, off this host; zero: it stays

	accepts []spot // the rules that let it pass, one for each base chain that has one
}

// Link is a network interface of this host.
type Link struct {
	Name     string
	AltNames []string // by which rules do not know it
	Index    int
	Up       bool
	Loopback bool
	Prefixes []netip.Prefix // addresses with the length of their networks
	Local    []netip.Prefix // what its routes of type local make addresses of this host, beside Prefixes
	Bridge   *Bridge        // nil: it is none
	lower    int            // the index of the interface that it is a VLAN of
}

// Bridge is what Link is for a bridge.
type Bridge struct {
	Ports int
	// Whether packets that it passes on go through the rules, whatever the sysctl
	// net.bridge.bridge-nf-call-iptables and -ip6tables say.
	Calls4, Calls6 bool
}

// Is reports whether that is one of its names.
func (l Link) Is(name string) bool { return l.Name == name || slices.Contains(l.AltNames, name) }

// Own reports whether an address is one of this host by this interface.
func (l Link) Own(a netip.Addr) bool {
	return slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Addr() == a }) ||
		slices.ContainsFunc(l.Local, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Ruleset is what Read found. Its methods may be called from one goroutine at a time.
type Ruleset struct {
	Links []Link

	// Marks are the rules of the routing that ask for a packet mark.
	Marks []RoutingMark

	tables map[tableKey]*table
	bases  []*chain // by priority
	sets   setReader
	toward func(netip.Addr) (int, error) // the index of the interface by which an address is reached
	close  func() error
}

// RoutingMark is a rule of the routing that has a table for a packet mark (ip-rule(8)).
type RoutingMark struct {
	V4          bool
	Value, Mask uint32
	Table       uint32
	Priority    uint32
	More        bool // it asks for something else too
}

// Toward returns the interface by which an address is reached: by which it reaches this host, where
// nothing routes the two ways differently.
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
		return Link{}, fmt.Errorf("there is no interface %d, which leads to %v", index, to)
	}
	return r.Links[i], nil
}

// Bridge returns the bridge by which an address of another machine is reached, also by a VLAN upon it.
func (r *Ruleset) Bridge(to netip.Addr) (Link, bool) {
	at, err := r.Toward(to)
	if err != nil {
		return Link{}, false // no way leads there, by a bridge or otherwise
	}
	for range r.Links { // or it would have no end
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

// Close gives up what reading sets needs. Nothing can be asked after it.
func (r *Ruleset) Close() error {
	if r.close == nil {
		return nil
	}
	return r.close()
}

// Table is a table of nf_tables.
type Table struct {
	Family, Name string
	Owned        bool // it belongs to a process: no other can change it
	Persistent   bool // it stays when that process ends
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
