package client

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Source says which address a request states as its own. The zero value leaves the
// choice to the profile.
type Source struct {
	kind sourceKind
	addr netip.Addr
}

type sourceKind uint8

const (
	sourceProfile sourceKind = iota
	sourceAuto
	sourceObserved
	sourceStated
)

// ParseSource reads "auto" (the own address, where it is globally routable),
// "observed" (whatever the gateway sees), an IP address, or "" (as the profile says).
func ParseSource(s string) (Source, error) {
	switch s {
	case "":
		return Source{}, nil
	case "auto":
		return Source{kind: sourceAuto}, nil
	case "observed":
		return Source{kind: sourceObserved}, nil
	}
	if strings.HasPrefix(s, "stun:") {
		return Source{}, errors.New("source stun: is not supported: use auto, observed or an address")
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return Source{}, fmt.Errorf("source %q: use auto, observed or an IP address", s)
	}
	addr = addr.Unmap()
	if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
		return Source{}, fmt.Errorf("source %q: not an address that packets can come from", s)
	}
	return Source{kind: sourceStated, addr: addr}, nil
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
	}
	return ""
}

// or fills in what a command leaves to the profile; a profile that says nothing means auto.
func (s Source) or(profile string) (Source, error) {
	if s.kind != sourceProfile {
		return s, nil
	}
	if profile == "" {
		return Source{kind: sourceAuto}, nil
	}
	return ParseSource(profile)
}

// state returns what is stated on a route that leaves from the local address, and
// the address that the socket has to be bound to so that the statement holds.
func (s Source) state(local netip.Addr) (stated, bind netip.Addr) {
	switch {
	case s.kind == sourceStated:
		return s.addr, s.addr
	case s.kind == sourceAuto && Routable(local):
		return local, local
	}
	return netip.Addr{}, netip.Addr{}
}
