package service

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Bounds of a network that a client may let in, as lengths of its prefix. No IPv4 network wider than a /8 has a
// single owner. In IPv6 a provider has a /32 and a link has a /64: below that, only a single address makes sense.
const (
	Widest4 = 8
	Widest6 = 32
	Link6   = 64
)

// never are networks that cannot be let in: no packet has such a source, or it means another machine on each link.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved and broadcast
	netip.MustParsePrefix("::/64"),       // unspecified, loopback, and IPv4 in IPv6
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// ValidNetwork reports whether a network can be let in, and allocates nothing. CheckNetwork returns why not.
func ValidNetwork(p netip.Prefix) bool { return wellFormed(p) && !reserved(p) && validLength(p) }

func wellFormed(p netip.Prefix) bool { return p.IsValid() && !p.Addr().Is4In6() && p == p.Masked() }

func reserved(p netip.Prefix) bool { return slices.ContainsFunc(never, p.Overlaps) }

func validLength(p netip.Prefix) bool {
	bits := p.Bits()
	if p.Addr().Is4() {
		return bits >= Widest4
	}
	return p.IsSingleIP() || Widest6 <= bits && bits <= Link6
}

// CheckNetwork returns an error if a network cannot be let in.
func CheckNetwork(p netip.Prefix) error {
	switch {
	case !wellFormed(p):
		return errors.New("not a valid network, or bits are set after the prefix")
	case reserved(p):
		return fmt.Errorf("%s contains loopback, link-local, multicast or other addresses that cannot be let in",
			NetworkText(p))
	case validLength(p):
		return nil
	case p.Addr().Is4():
		return fmt.Errorf("%s is too wide: use /%d or narrower", p, Widest4)
	case p.Bits() < Widest6:
		return fmt.Errorf("%s is too wide: use /%d or narrower", p, Widest6)
	}
	return fmt.Errorf("%s is too narrow: use an IPv6 network of /%d to /%d, or a single address", p, Widest6, Link6)
}

// ParseNetwork parses a network that a client may let in, or one address.
func ParseNetwork(s string) (netip.Prefix, error) {
	p, err := ParsePrefix(s)
	if err == nil {
		err = CheckNetwork(p)
	}
	return p, err
}

// NetworkText formats a network, and a single address without its length.
func NetworkText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
