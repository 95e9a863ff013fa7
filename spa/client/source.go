package client

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// Source is the address that a request states as its own. The zero value leaves the choice to the profile.
type Source struct {
	kind   sourceKind
	addr   netip.Addr
	server string // of STUN: HOST or HOST:PORT
}

type sourceKind uint8

const (
	sourceProfile sourceKind = iota
	sourceAuto
	sourceObserved
	sourceStated
	sourceSTUN
)

// ParseSource parses "auto" (this machine's address, if it is globally routable), "observed" (none: the address that
// the gateway sees), "stun:HOST[:PORT]" (the address that this server sees), an IP address, or "" (the profile's
// setting).
func ParseSource(s string) (Source, error) {
	switch s {
	case "":
		return Source{}, nil
	case "auto":
		return Source{kind: sourceAuto}, nil
	case "observed":
		return Source{kind: sourceObserved}, nil
	}
	if server, ok := strings.CutPrefix(s, "stun:"); ok {
		if _, _, err := service.SplitAddress(server); err != nil {
			return Source{}, fmt.Errorf("source %q: %w", s, err)
		}
		return Source{kind: sourceSTUN, server: server}, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return Source{}, fmt.Errorf("source %q: use auto, observed, stun:HOST or an IP address", s)
	}
	addr = addr.Unmap()
	if !usable(addr) {
		return Source{}, fmt.Errorf("source %q: not an address that packets can come from", s)
	}
	return Source{kind: sourceStated, addr: addr}, nil
}

// usable reports whether packets can come from an address.
func usable(addr netip.Addr) bool {
	return addr.IsValid() && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsMulticast()
}

// String returns what ParseSource reads.
func (s Source) String() string {
	switch s.kind {
	case sourceAuto:
		return "auto"
	case sourceObserved:
		return "observed"
	case sourceStated:
		return s.addr.String()
	case sourceSTUN:
		return "stun:" + s.server
	}
	return ""
}

// NAT64Error is wrapped in a CommandError by Prepare if a source should be stated that the gateway certainly does not
// see, because of a translator in front of it. The user must decide what to do: if the client switched to the observed
// address on its own, an attacker who forges a resolver's answer could make it do so.
type NAT64Error struct {
	Gateway, Stated netip.Addr
}

// Error says which address cannot be stated, and why.
func (e *NAT64Error) Error() string {
	return fmt.Sprintf("%v leads through a translator from IPv6 to IPv4 (NAT64), so the gateway does not see %v, which "+
		"would be stated", e.Gateway, e.Stated)
}

// nat64 are the prefixes that represent IPv4 addresses behind a translator: RFC 6052, RFC 8215.
var nat64 = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48")}

// NAT64 reports whether packets to an address are translated to IPv4 on their way.
func NAT64(gateway netip.Addr) bool {
	return slices.ContainsFunc(nat64, func(p netip.Prefix) bool { return p.Contains(gateway) })
}

// or returns the profile's source if the command has none; a profile without one means auto.
func (s Source) or(profile string) (Source, error) {
	if s.kind != sourceProfile {
		return s, nil
	}
	if profile == "" {
		return Source{kind: sourceAuto}, nil
	}
	return ParseSource(profile)
}

// state returns the source to state on a route that leaves from the local address, and the address to bind the socket
// to so that it is true.
func (s Source) state(local netip.Addr) (stated, bind netip.Addr) {
	switch {
	case s.kind == sourceStated:
		return s.addr, s.addr
	case s.kind == sourceAuto && Routable(local):
		return local, local
	}
	return netip.Addr{}, netip.Addr{}
}
