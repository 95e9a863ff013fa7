package doctor

import (
	"net/netip"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

// TestMoving: if receipts name several addresses, doctor says so, with a network that has all of them, if there is one
// that can be let in.
func TestMoving(t *testing.T) {
	for _, test := range []struct{ seen, advice string }{
		{"198.51.100.7", ""},
		{"198.51.100.7 198.51.100.7", ""},
		{"198.51.100.7 198.51.100.9",
			"--let-in 198.51.100.0/28; the gateway's administrator has to allow that: spa-keygen set alice widest4=28"},
		{"198.51.100.7 198.51.100.250 198.51.100.9", "--let-in 198.51.100.0/24;"},
		{"2001:db8::7 2001:db8::8",
			"--let-in 2001:db8::/64; the gateway's administrator has to allow that: spa-keygen set alice widest6=64"},
		{"2001:db8::7 2001:db8:0:3::8", "--let-in 2001:db8::/62;"},
		{"198.51.100.7 203.0.113.7", "a path with one address"},
		{"198.51.100.7 198.50.0.1", "a path with one address"},
		{"2001:db8::7 2001:db8:1::7", "a path with one address"},
	} {
		e := &examination{profile: &keys.Profile{Name: "gw", Client: "alice"}}
		f := newFamily(netip.MustParseAddr("192.0.2.1"))
		for i, a := range strings.Fields(test.seen) {
			k := knocked{service: service.Service{Name: "ssh"},
				answer: client.Answer{Receipt: &spa.Receipt{Source: netip.MustParseAddr(a)}}}
			if f.asked = append(f.asked, k); i == 0 {
				f.knocks = append(f.knocks, k)
			}
		}
		found := e.describeMoving(f)
		if test.advice == "" {
			if len(found) > 0 {
				t.Errorf("%s: %+v, want nothing", test.seen, found)
			}
			continue
		}
		if len(found) != 1 || found[0].State != Bad || !strings.Contains(found[0].Advice, test.advice) {
			t.Errorf("%s: %+v, want one that advises %q", test.seen, found, test.advice)
		}
	}
}
