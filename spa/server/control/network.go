package control

import "net/netip"

// Whom returns the network or address that a grant lets in.
func (g Grant) Whom() string { return whom(g.Source, g.Network) }

// Whom returns the network or address that a decision is about, if it is about a grant.
func (d Decision) Whom() string { return whom(d.Source, d.Network) }

func whom(source netip.Addr, network netip.Prefix) string {
	if network.IsValid() {
		return network.String()
	}
	return source.String()
}
