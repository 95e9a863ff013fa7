// package local reads what package net does not tell of this host: which addresses are its own though no
// interface has them, by routes of type local, as cloud agents, load balancers and AnyIP prefixes have
// them; what its interfaces are made of; and how it routes.
package local

import "net/netip"

// Route makes the addresses of a prefix this host's own.
type Route struct {
	Prefix netip.Prefix
	Link   int // the index of its interface
}

// Link is what package net does not tell of an interface.
type Link struct {
	AltNames []string // ip-link(8)
	Kind     string   // bridge, vlan and so on; empty: a device
	Master   int      // the index of the bridge that it is a port of; 0: none
	Lower    int      // the index of the interface that it is upon; 0: none

	// Of a bridge: whether packets that it passes on go through iptables and nftables whatever
	// net.bridge.bridge-nf-call-iptables and -ip6tables say.
	Calls4, Calls6 bool
}

// Rule is a rule of the routing that asks for a packet mark (ip-rule(8)).
type Rule struct {
	V4          bool
	Value, Mask uint32
	Table       uint32
	Priority    uint32
	More        bool // it asks for something else too
}
