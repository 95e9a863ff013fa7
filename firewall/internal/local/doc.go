// Package local reads what package net does not report about this host: local routes, which make addresses the host's
// own although no interface has them (cloud agents, load balancers and AnyIP prefixes add them), the kinds of its
// interfaces, and its routing.
package local

import "net/netip"

// Route is a route of type local: it makes the addresses of a prefix this host's own.
type Route struct {
	Prefix netip.Prefix
	Link   int // the index of its interface
}

// Link is what package net does not report about an interface.
type Link struct {
	AltNames []string // alternative names: ip-link(8)
	Kind     string   // bridge, vlan and so on; empty: a device
	Master   int      // the index of the bridge that this is a port of; 0: none
	Lower    int      // the index of the interface below this one; 0: none

	// Calls4 and Calls6 are for bridges: forwarded packets pass through iptables and nftables whatever
	// net.bridge.bridge-nf-call-iptables and -ip6tables are set to.
	Calls4, Calls6 bool
}

// Rule is a routing rule that matches a packet mark (ip-rule(8)).
type Rule struct {
	V4          bool
	Value, Mask uint32
	Table       uint32
	Priority    uint32
	More        bool // the rule matches something else as well
}
