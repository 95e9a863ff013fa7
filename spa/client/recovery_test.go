package client

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"

	"sallyport/spa"
)

// TestRecoveryKeyIsSpared: with a recovery key the client knocks in the second family only if the first was silent, and
// never to renew.
func TestRecoveryKeyIsSpared(t *testing.T) {
	for name, c := range map[string]struct {
		decide   func(spa.Knock, netip.AddrPort, int) spa.Status
		receipts bool
		requests int
	}{
		"granted": {func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.Granted }, true, 1},
		"refused": {func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.ReasonNoUses }, true, 1},
		"silent in IPv4": {func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
			if to.Addr().Is4() {
				return 0
			}
			return spa.Granted
		}, true, 2},
		"without receipts": {func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }, false, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			g, n := fakes(t)
			n.hosts = map[string][]netip.Addr{"gw.example.net": {gate4, gate6}}
			g.profile.Address, g.profile.Recovery, g.profile.Receipts = "gw.example.net", true, c.receipts
			g.decide = c.decide
			n.tcp = func(netip.Addr, netip.AddrPort) error { return errors.New("refused") }
			for range mustPrepare(t, g, n, open()).Knock(t.Context()) {
			}
			knocks, _, _ := g.seen()
			requests := map[spa.RequestID]bool{}
			for _, k := range knocks {
				requests[k.ID] = true
			}
			if len(requests) != c.requests {
				t.Errorf("%s: %d requests, want %d", name, len(requests), c.requests)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.profile.Recovery = true
		for r := range keep(t.Context(), g.profile, open(), n) {
			if impossible := new(CommandError); !errors.As(r.Err, &impossible) {
				t.Errorf("got %v", r.Err)
			}
		}
		if knocks, _, _ := g.seen(); len(knocks) > 0 {
			t.Errorf("%d knocks were sent to renew", len(knocks))
		}
	})
}
