package firewall

import (
	"net/netip"
	"testing"
	"time"
)

// TestForwardMoves: a grant is for the place that its port led to. It does not lead to another one after a change, nor
// to the gateway's own program, and other grants stay.
func TestForwardMoves(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		w := newForwarded(t, k, forwarding{}, f)
		other := w.listens(w.gw, ":2301")
		for name, change := range map[string]func(*Config){
			"to another port": func(c *Config) { c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, Port: 2301}} },
			"nowhere":         func(c *Config) { c.Forwards = nil },
			"to a machine": func(c *Config) {
				c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, To: []netip.AddrPort{
					netip.AddrPortFrom(netip.MustParseAddr(innerAddr[f.name]), 2301)}}}
			},
		} {
			w.knocks(w.alice)
			w.grant("alice", w.alice, long)
			w.talks(w.alice)
			before := w.config
			w.becomes(change)
			w.dark(w.alice, w.gateway, "2222")
			if gs := w.Grants(time.Now()); len(gs) != 1 || gs[0].Service != "ssh" {
				t.Errorf("%s: %v are live, want the grant for another port", name, gs)
			}
			w.becomes(func(c *Config) { c.Forwards = before.Forwards })
			w.dark(w.alice, w.gateway, "2222")
		}
		w.knocks(w.alice)
		w.becomes(func(c *Config) { c.Forwards[0].Masquerade = true })
		w.talks(w.alice)
		w.becomes(func(c *Config) { c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, Port: 2301}} })
		w.knocks(w.alice)
		w.talksBy(w.alice, other)
	})
}
