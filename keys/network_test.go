package keys

import (
	"net/netip"
	"strings"
	"testing"
)

// TestNetworksRefused: a client file with a network that is too wide, or that nobody may let in, is refused.
func TestNetworksRefused(t *testing.T) {
	for setting, want := range map[string]string{
		`widest4=0`:                    "from 8 to 32",
		`widest4=7`:                    "from 8 to 32",
		`widest4=33`:                   "from 8 to 32",
		`widest6=0`:                    "from 32 to 64",
		`widest6=31`:                   "from 32 to 64",
		`widest6=65`:                   "from 32 to 64",
		`widest4=-1`:                   "from 8 to 32",
		`delegate=0.0.0.0/0`:           "cannot be let in",
		`delegate=192.0.0.0/7`:         "too wide: use /8",
		`delegate=::/0`:                "cannot be let in",
		`delegate=2001:db8::/80`:       "too narrow",
		`delegate=127.0.0.1`:           "cannot be let in",
		`delegate=fe80::/64`:           "cannot be let in",
		`delegate=224.0.0.1`:           "cannot be let in",
		`delegate=::ffff:203.0.113.1`:  "a network is written",
		`delegate=203.0.113.1/24`:      "bits outside its mask",
		`delegate=203.0.113.0/24,::/1`: "entry 2",
	} {
		dir, _ := handwrittenClient(t)
		_, _, err := SetClient(dir, "alice", []string{setting}, false, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", setting, err, want)
		}
	}
}

// TestWidens: a network around an address is within the file's bounds, lies within from, and has nothing of deny.
func TestWidens(t *testing.T) {
	networks := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	c := Client{Widest4: 24, Delegate: networks("203.0.113.0/24")}
	limited := Client{Widest4: 16, Widest6: 56, From: networks("198.51.100.0/24", "2001:db8::/32"),
		Deny: networks("198.51.100.128/25", "203.0.113.9/32"), Delegate: networks("203.0.113.0/24")}
	for _, test := range []struct {
		client      Client
		network     string
		wide, lends bool
	}{
		{c, "198.51.100.0/24", true, false},
		{c, "198.51.100.0/23", false, false},
		{c, "2001:db8::/64", false, false},
		{c, "203.0.113.0/24", true, true},
		{c, "203.0.113.64/26", true, true},
		{c, "203.0.112.0/23", false, false},
		{Client{}, "198.51.100.7/32", false, false},
		{limited, "198.51.100.0/25", true, false},
		{limited, "198.51.100.0/24", false, false},
		{limited, "198.51.0.0/16", false, false},
		{limited, "2001:db8:1:100::/56", true, false},
		{limited, "203.0.113.0/29", false, true},
		{limited, "203.0.113.8/29", false, false},
		{limited, "203.0.113.9/32", false, false},
	} {
		p := netip.MustParsePrefix(test.network)
		if wide, lends := test.client.Widens(p), test.client.Lends(p); wide != test.wide || lends != test.lends {
			t.Errorf("%s: widens %v, lends %v; want %v, %v", p, wide, lends, test.wide, test.lends)
		}
	}
}
