package policy

import (
	"net/netip"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa"
)

// peer returns whom a request asks to let in, if the client's file allows that: the sender, a network around it, or
// what the file lends to the client wherever it is. Nothing is let in in part.
func (p *Policy) peer(k *spa.Knock, from netip.Addr) (firewall.Peer, error) {
	n := k.LetIn
	if !n.IsValid() || n.IsSingleIP() && n.Addr() == from {
		return firewall.Peer{Source: from}, nil
	}
	peer := firewall.Peer{Source: n.Addr()}
	if !n.IsSingleIP() {
		peer.Bits = uint8(n.Bits())
	}
	if !n.Contains(from) || !k.Client.Widens(n) {
		peer.Lent = true
	}
	if !p.lets(k.Client, peer) {
		return firewall.Peer{}, &Denial{Reason: spa.ReasonNetwork}
	}
	return peer, nil
}

// lets reports whether the client's file, as it is now, allows to let in a network or address. Those that were lent
// stay so: a client that has lost them does not keep them because it could let in as much around its own address.
func (p *Policy) lets(c *keys.Client, peer firewall.Peer) bool {
	network := firewall.Grant{Source: peer.Source, Bits: peer.Bits}.Network()
	switch {
	case peer.Bits > 0 && p.admits:
		return false // the administrator's sets have addresses
	case peer.Lent:
		return c.Lends(network)
	case peer.Bits > 0:
		return c.Widens(network)
	}
	return permits(c, peer.Source.WithZone("")) == nil
}

// isFor reports whether a service may be opened for a peer. A program gets the address of one machine, one connection
// is for one, and a port is led elsewhere for single addresses.
func (t terms) isFor(peer firewall.Peer) bool {
	return peer.Bits == 0 || !t.runs && !t.once && len(t.led) == 0
}
