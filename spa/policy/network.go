package policy

import (
	"net/netip"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa"
)

// peer returns what a request asks to let in, if the client's file allows it: the sender, a network around it, or part
// of the file's delegate. A network is let in as a whole or refused.
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

// lets reports whether the client's present file allows it to let in a network or address. A peer that was allowed by
// delegate is checked against delegate alone, even if the client could now let it in around its own address.
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

// isFor reports whether a service may be opened for a peer. A service with a program, once or forward opens for single
// addresses only.
func (t terms) isFor(peer firewall.Peer) bool {
	return peer.Bits == 0 || !t.runs && !t.once && len(t.led) == 0
}
