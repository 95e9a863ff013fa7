// Package local reads which addresses are this host's own though no interface has them: those of routes
// of type local, as cloud agents, load balancers and AnyIP prefixes have them.
package local

import "net/netip"

// Route makes the addresses of a prefix this host's own.
type Route struct {
	Prefix netip.Prefix
	Link   int // the index of its interface
}
