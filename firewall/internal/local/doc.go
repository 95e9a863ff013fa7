// Package local reads what package net does not tell of this host: which addresses are its own though no
// interface has them, by routes of type local, as cloud agents, load balancers and AnyIP prefixes have
// them; and by which other names an interface is known.
package local

import "net/netip"

// Route makes the addresses of a prefix this host's own.
type Route struct {
	Prefix netip.Prefix
	Link   int // the index of its interface
}
