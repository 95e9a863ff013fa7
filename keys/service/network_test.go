package service

import (
	"net/netip"
	"testing"
)

// TestCheckNetwork: what is no network, has bits after its prefix, or has a network that nobody owns is refused.
func TestCheckNetwork(t *testing.T) {
	for text, want := range map[string]bool{
		"198.51.100.0/24": true, "198.51.100.7/32": true, "2001:db8::/64": true, "2001:db8::1/128": true,
		"198.51.100.1/24": false, "2001:db8::1/64": false, "0.1.2.3/32": false, "0.0.0.0/8": false,
		"::ffff:198.51.100.7/128": false, "::1:0:0:0:0/64": true,
	} {
		if err := CheckNetwork(netip.MustParsePrefix(text)); (err == nil) != want {
			t.Errorf("%s: %v, want it to be good: %v", text, err, want)
		}
	}
	if CheckNetwork(netip.Prefix{}) == nil || CheckNetwork(netip.PrefixFrom(netip.IPv6LinkLocalAllNodes(), 300)) == nil {
		t.Error("what is no network is good")
	}
}
