package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// sourceRule is what to state as the source (section 8, "The source address").
// With neither field set it is automatic.
type sourceRule struct {
	observed bool
	address  netip.Addr
}

var errSTUN = errors.New("asking a STUN server is not supported: give the source address or observed")

// parseSource reads the text of a token or a user.
func parseSource(text string) (sourceRule, error) {
	switch host, stun := strings.CutPrefix(text, "stun:"); {
	case text == "":
		return sourceRule{}, nil
	case text == "observed":
		return sourceRule{observed: true}, nil
	case stun && host != "":
		return sourceRule{}, errSTUN
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Unmap().IsUnspecified() || a.Unmap().IsMulticast() {
		return sourceRule{}, fmt.Errorf("bad source address %q", text)
	}
	return sourceRule{address: a.Unmap()}, nil
}

// covers tells whether a family is knocked on: a stated address is for its own
// family only, and never replaced by zeros in the other.
func (r sourceRule) covers(v4 bool) bool {
	return !r.address.IsValid() || r.address.Is4() == v4
}

// choose returns what a request states where packets leave from local.
func (r sourceRule) choose(local netip.Addr) netip.Addr {
	switch {
	case r.address.IsValid():
		return r.address
	case r.observed || !globallyReachable(local):
		return netip.Addr{}
	}
	return local
}

// localFor returns the address that the system would send from. It fails where
// there is no way to the destination.
func localFor(to netip.AddrPort) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), nil
}

// specialPurpose has IANA's special-purpose address registries: whether a
// prefix is globally reachable, the smallest one that fits deciding. What is
// "N/A" there counts as not, and so do multicast and, in IPv6, everything
// outside 2000::/3 that is not listed as reachable.
var specialPurpose = map[string]bool{
	"0.0.0.0/8": false, "10.0.0.0/8": false, "100.64.0.0/10": false,
	"127.0.0.0/8": false, "169.254.0.0/16": false, "172.16.0.0/12": false,
	"192.0.0.0/24": false, "192.0.0.9/32": true, "192.0.0.10/32": true,
	"192.0.2.0/24": false, "192.88.99.0/24": false, "192.168.0.0/16": false,
	"198.18.0.0/15": false, "198.51.100.0/24": false, "203.0.113.0/24": false,
	"224.0.0.0/4": false, "240.0.0.0/4": false,

	"::/0": false, "2000::/3": true, "64:ff9b::/96": true,
	"2001::/23": false, "2001:1::1/128": true, "2001:1::2/128": true,
	"2001:1::3/128": true, "2001:3::/32": true, "2001:4:112::/48": true,
	"2001:20::/28": true, "2001:30::/28": true, "2001:db8::/32": false,
	"2002::/16": false, "3fff::/20": false,
}

func globallyReachable(a netip.Addr) bool {
	reachable, longest := true, -1
	for text, is := range specialPurpose {
		prefix := netip.MustParsePrefix(text)
		if prefix.Contains(a) && prefix.Bits() > longest {
			reachable, longest = is, prefix.Bits()
		}
	}
	return reachable
}
