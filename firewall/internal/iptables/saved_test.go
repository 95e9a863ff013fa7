package iptables

import (
	"slices"
	"testing"
)

// TestRulesThatLeadToOurs: a rule that only mentions our chains in a comment is not ours, and stays.
func TestRulesThatLeadToOurs(t *testing.T) {
	mangle := Tables()[1]
	ours := []string{
		"-A PREROUTING -m comment --comment sallyport -j spa-guard",
		"-A OUTPUT -m comment --comment sallyport -j spa-revive",
		"-A FORWARD -i eth0 -g spa-here",
	}
	text := "*mangle\n:PREROUTING ACCEPT [0:0]\n:spa-guard - [0:0]\n"
	for _, line := range append([]string{
		`-A PREROUTING -m comment --comment "see -j spa-guard below"`,
		`-A PREROUTING -m comment --comment "goes to -j spa-guard"`,
		`-A PREROUTING -p tcp -m comment --comment " -j spa-guard " -j LOG --log-prefix " -g spa-here "`,
		"-A PREROUTING -j spa-guards",
		"-A INPUT",
	}, ours...) {
		text += line + "\n"
	}
	s := ParseSaved(mangle, text+"COMMIT\n")
	if !slices.Equal(s.Others, ours) {
		t.Errorf("got %q, want %q", s.Others, ours)
	}
	if _, there := s.Chains[ChainGuard]; !there || len(s.Chains) != 1 {
		t.Errorf("got the chains %q, want spa-guard alone", s.Chains)
	}
}
