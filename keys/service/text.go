package service

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// MaxDuration is the longest duration that a file may name. A packet has 32 bits for milliseconds, which is 49 days;
// this is the round number below that.
const MaxDuration = 1000 * time.Hour

// MaxName is the greatest length of a name in bytes.
const MaxName = 32

// LongestOnce is how long a grant for one connection can last. The kernel counts such a connection for a week.
const LongestOnce = 6 * 24 * time.Hour

// Errors of ValidName. Packets have names too, and a bad one must cost no allocation.
var (
	errNameLength = errors.New("a name has 1 to 32 characters")
	errNameBytes  = errors.New("a name may contain only lower-case letters, digits and hyphens, and must not begin with " +
		"a hyphen")
)

// ValidName returns an error unless s can name a client, host or service: [a-z0-9][a-z0-9-]{0,31}.
func ValidName(s string) error {
	if s == "" || len(s) > MaxName {
		return errNameLength
	}
	for i := range len(s) {
		if !nameByte(s[i]) && (s[i] != '-' || i == 0) {
			return errNameBytes
		}
	}
	return nil
}

func nameByte(b byte) bool { return 'a' <= b && b <= 'z' || '0' <= b && b <= '9' }

// ValidInterface returns an error unless s can name a network interface in a configuration. The kernel accepts nearly
// every byte; nft and iptables do not, or take some names for patterns ("eth+", "eth*"). A printed rule must mean what
// the configuration says.
func ValidInterface(s string) error {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return errors.New("the name of an interface has 1 to 15 characters")
	}
	for i := range len(s) {
		if !wordByte(s[i]) && !strings.ContainsRune(".-@", rune(s[i])) || i == 0 && s[i] == '-' {
			return errors.New("the name of an interface may contain letters, digits, . _ @ and, except at the start, " +
				"hyphens: nft and iptables cannot express others, or read them as patterns; rename the interface " +
				"(ip link set NAME name NEW)")
		}
	}
	return nil
}

// ValidTable returns an error unless s can name a table or set in nft's syntax without quotes.
func ValidTable(s string) error {
	if s == "" || len(s) > 100 {
		return errors.New("the name of a table or set has 1 to 100 characters")
	}
	for i := range len(s) {
		digit := '0' <= s[i] && s[i] <= '9' || s[i] == '-' || s[i] == '.'
		if !wordByte(s[i]) && !digit || i == 0 && digit {
			return errors.New("the name of a table or set may contain letters, underscores and, except at the start, digits, " +
				"hyphens and dots")
		}
	}
	return nil
}

// wordByte reports whether b is a letter, a digit or an underscore.
func wordByte(b byte) bool {
	lower := b | 0x20
	return 'a' <= lower && lower <= 'z' || '0' <= b && b <= '9' || b == '_'
}

// portNumber parses 1 to 65535 in one spelling only: no sign, no leading zero.
func portNumber(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && s[0] != '0'
}

// SplitAddress splits the address of a gateway: a host name or an IP address, with or without a port (zero). IPv6 has
// brackets if it has a port: "[2001:db8::1]:443". An address has at most 250 characters: a token has one byte for its
// length.
func SplitAddress(s string) (host string, port uint16, err error) {
	if len(s) > 250 {
		return "", 0, errors.New("an address has at most 250 characters")
	}
	host = s
	if i := portColon(s); i >= 0 {
		var ok bool
		if port, ok = portNumber(s[i+1:]); !ok {
			return "", 0, errors.New("the port after the colon of an address is 1 to 65535")
		}
		host = s[:i]
	}
	inner, ok := strings.CutPrefix(host, "[")
	if !ok && port != 0 && strings.Contains(host, ":") {
		return "", 0, errors.New("write an IPv6 address with a port in brackets")
	}
	if ok {
		inner, closed := strings.CutSuffix(inner, "]")
		if !closed || !strings.Contains(inner, ":") {
			return "", 0, errors.New("only an IPv6 address may be in brackets")
		}
		host = inner
	}
	if err := validHost(host); err != nil {
		return "", 0, err
	}
	return host, port, nil
}

// portColon returns the index of the colon before the port, or -1: IPv6 without brackets has no port.
func portColon(s string) int {
	if _, err := netip.ParseAddr(s); err == nil || strings.HasSuffix(s, "]") {
		return -1
	}
	return strings.LastIndexByte(s, ':')
}

// validHost checks an IP address without a zone, or a host name (RFC 1123, and underscores, which networks use).
func validHost(s string) error {
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip.Zone() != "" || ip.Is4In6() || ip.IsUnspecified() || ip.IsMulticast() {
			return errors.New("a gateway's address is a plain unicast address, IPv4 or IPv6")
		}
		return nil
	}
	if s == "" || len(s) > 253 {
		return errors.New("a host name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if !validLabel(label) {
			return errors.New("an address is a host name or an IP address")
		}
	}
	if last := s[len(s)-1]; '0' <= last && last <= '9' && strings.Trim(s, "0123456789.") == "" {
		return errors.New("an address of digits and dots is not a valid IPv4 address")
	}
	return nil
}

func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		lower := s[i] | 0x20
		if !('a' <= lower && lower <= 'z') && !('0' <= s[i] && s[i] <= '9') && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return true
}

// ParseDuration parses a duration in Go's syntax ("30s", "1h30m"): one second to MaxDuration, in whole milliseconds.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New(`a duration is written "30s", "10m" or "1h30m"`)
	}
	if d < time.Second || d > MaxDuration {
		return 0, fmt.Errorf("a duration is %s to %s", FormatDuration(time.Second), FormatDuration(MaxDuration))
	}
	if d%time.Millisecond != 0 {
		return 0, errors.New("a duration must be in whole milliseconds")
	}
	return d, nil
}

// FormatDuration formats a duration as a person would: "10m", not "10m0s".
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ParsePrefix parses a network, or an address as the network of that one address.
func ParsePrefix(s string) (netip.Prefix, error) {
	errForm := errors.New(`a network is written "203.0.113.0/24", "2001:db8::/32", or as one address`)
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip.Zone() != "" || ip.Is4In6() {
			return netip.Prefix{}, errForm
		}
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, errForm
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits outside its mask: write %s", p, p.Masked())
	}
	return p, nil
}
