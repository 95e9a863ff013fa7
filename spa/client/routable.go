package client

import "net/netip"

// special is a block of IANA's special-purpose address registries.
type special struct {
	prefix netip.Prefix
	global bool // the registry's column "Globally Reachable"; "N/A" is false here
}

// specials holds the registries' blocks with the document that each is from.
// https://www.iana.org/assignments/iana-ipv4-special-registry (RFC 6890, RFC 8190)
// https://www.iana.org/assignments/iana-ipv6-special-registry Multicast has its own registries and is added here, so
// that one table decides.
var specials = []special{
	{netip.MustParsePrefix("0.0.0.0/8"), false},      // RFC 791, section 3.2: this network
	{netip.MustParsePrefix("10.0.0.0/8"), false},     // RFC 1918: private use
	{netip.MustParsePrefix("100.64.0.0/10"), false},  // RFC 6598: shared address space (carrier-grade NAT)
	{netip.MustParsePrefix("127.0.0.0/8"), false},    // RFC 1122, section 3.2.1.3: loopback
	{netip.MustParsePrefix("169.254.0.0/16"), false}, // RFC 3927: link local
	{netip.MustParsePrefix("172.16.0.0/12"), false},  // RFC 1918: private use
	{netip.MustParsePrefix("192.0.0.0/24"),
		false}, // RFC 6890, section 2.1: IETF protocol assignments, with RFC 7335, 7600, 7050
	{netip.MustParsePrefix("192.0.0.9/32"), true},     // RFC 7723: port control protocol anycast
	{netip.MustParsePrefix("192.0.0.10/32"), true},    // RFC 8155: TURN anycast
	{netip.MustParsePrefix("192.0.2.0/24"), false},    // RFC 5737: documentation
	{netip.MustParsePrefix("192.31.196.0/24"), true},  // RFC 7535: AS112-v4
	{netip.MustParsePrefix("192.52.193.0/24"), true},  // RFC 7450: AMT
	{netip.MustParsePrefix("192.88.99.0/24"), false},  // RFC 7526: deprecated 6to4 relay anycast
	{netip.MustParsePrefix("192.168.0.0/16"), false},  // RFC 1918: private use
	{netip.MustParsePrefix("192.175.48.0/24"), true},  // RFC 7534: direct delegation AS112
	{netip.MustParsePrefix("198.18.0.0/15"), false},   // RFC 2544: benchmarking
	{netip.MustParsePrefix("198.51.100.0/24"), false}, // RFC 5737: documentation
	{netip.MustParsePrefix("203.0.113.0/24"), false},  // RFC 5737: documentation
	{netip.MustParsePrefix("224.0.0.0/4"), false},     // RFC 5771: multicast
	{netip.MustParsePrefix("240.0.0.0/4"), false},     // RFC 1112, section 4: reserved, with RFC 8190: limited broadcast
	// IPv6 outside the two blocks after this one is special or unassigned: ::, ::1, ::ffff:0:0/96, fe80::/10 and
	// ff00::/8 (RFC 4291), 64:ff9b:1::/48 (RFC 8215), 100::/64 (RFC 6666), 100:0:0:1::/64 (RFC 9780), 5f00::/16 (RFC
	// 9602), fc00::/7 (RFC 4193), fec0::/10 (RFC 3879).
	{netip.MustParsePrefix("::/0"), false},             // RFC 4291, section 2.4
	{netip.MustParsePrefix("2000::/3"), true},          // RFC 3587: global unicast
	{netip.MustParsePrefix("64:ff9b::/96"), true},      // RFC 6052: IPv4 translation
	{netip.MustParsePrefix("2001::/23"), false},        // RFC 2928: IETF protocol assignments
	{netip.MustParsePrefix("2001::/32"), false},        // RFC 4380: Teredo
	{netip.MustParsePrefix("2001:1::1/128"), true},     // RFC 7723: port control protocol anycast
	{netip.MustParsePrefix("2001:1::2/128"), true},     // RFC 8155: TURN anycast
	{netip.MustParsePrefix("2001:1::3/128"), true},     // RFC 9665: DNS-SD service registration anycast
	{netip.MustParsePrefix("2001:2::/48"), false},      // RFC 5180: benchmarking
	{netip.MustParsePrefix("2001:3::/32"), true},       // RFC 7450: AMT
	{netip.MustParsePrefix("2001:4:112::/48"), true},   // RFC 7535: AS112-v6
	{netip.MustParsePrefix("2001:10::/28"), false},     // RFC 4843: deprecated ORCHID
	{netip.MustParsePrefix("2001:20::/28"), true},      // RFC 7343: ORCHIDv2
	{netip.MustParsePrefix("2001:30::/28"), true},      // RFC 9374: drone remote identification
	{netip.MustParsePrefix("2001:db8::/32"), false},    // RFC 3849: documentation
	{netip.MustParsePrefix("2002::/16"), false},        // RFC 3056: 6to4
	{netip.MustParsePrefix("2620:4f:8000::/48"), true}, // RFC 7534: direct delegation AS112
	{netip.MustParsePrefix("3fff::/20"), false},        // RFC 9637: documentation
}

// Routable reports whether an address is reachable from the whole Internet by IANA's registries, so that a gateway
// elsewhere sees it unchanged. The longest block that contains the address decides; an IPv4 address in no block is
// routable.
func Routable(addr netip.Addr) bool {
	addr = addr.Unmap()
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	longest, global := -1, true
	for _, s := range specials {
		if s.prefix.Bits() > longest && s.prefix.Contains(addr) {
			longest, global = s.prefix.Bits(), s.global
		}
	}
	return global
}
