package client

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/spa"
)

// TestLetIn: a command that lets in a network knocks in its family only, if that can be reached, and every packet names
// the network. A receipt that lets in anything else is a fault of the gateway.
func TestLetIn(t *testing.T) {
	for _, test := range []struct {
		network string
		only    []netip.Addr // of the gateway's name
		family  string
	}{
		{"198.51.100.0/24", []netip.Addr{gate6, gate4}, "IPv4"},
		{"2001:db8:100::/48", []netip.Addr{gate6, gate4}, "IPv6"},
		{"2001:db8::7/128", []netip.Addr{gate4}, "IPv4"}, // which the gateway may lend
	} {
		synctest.Test(t, func(t *testing.T) {
			g, n := both(t)
			n.hosts["gw.example.net"] = test.only
			c := open()
			c.LetIn = netip.MustParsePrefix(test.network)
			plan := mustPrepare(t, g, n, c)
			if len(plan.Routes) != 1 || plan.Routes[0].Family() != test.family {
				t.Errorf("%s: %+v, want one route by %s", test.network, plan.Routes, test.family)
			}
			if r := plan.request(plan.Routes[0], time.Now()); r.LetIn != c.LetIn {
				t.Errorf("%s: the request lets in %v", test.network, r.LetIn)
			}
		})
	}
	c := open()
	c.LetIn = netip.MustParsePrefix("198.51.100.0/24")
	for letIn, want := range map[string]bool{"198.51.100.0/24": true, "198.51.100.0/25": false, "198.51.0.0/16": false} {
		r := spa.Receipt{Status: spa.Granted, LetIn: netip.MustParsePrefix(letIn), Services: make([]spa.Granting,
			len(c.Services))}
		if got := c.matches(r); got != want {
			t.Errorf("a receipt that lets in %s: %v, want %v", letIn, got, want)
		}
		r.LetIn = netip.Prefix{}
		if c.matches(r) || !open().matches(r) || open().matches(spa.Receipt{Status: spa.Granted, LetIn: c.LetIn,
			Services: r.Services}) {
			t.Error("a receipt lets in the sender in place of a network, or the reverse")
		}
	}
	if final(spa.ReasonNetwork) {
		t.Error("--renew gives up where the address changes for a while")
	}
}
