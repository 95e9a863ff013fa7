package server

import (
	"net/netip"
	"strings"
	"testing"

	"sallyport/keys"
)

// TestExpectNetworks: once a client's file lets it ask for a network, by itself or by a reload, the firewall gets ready
// for that, once, and not before.
func TestExpectNetworks(t *testing.T) {
	for name, reads := range map[string]func(b *bench) error{
		"a changed file": func(b *bench) error { return b.s.reloadClient(b.Context(), "alice") },
		"a reload":       func(b *bench) error { _, err := b.s.reload(b.Context()); return err },
	} {
		for what, widen := range map[string]func(c *keys.Client){
			"widest4":  func(c *keys.Client) { c.Widest4 = 24 },
			"widest6":  func(c *keys.Client) { c.Widest6 = 56 },
			"delegate": func(c *keys.Client) { c.Delegate = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} },
		} {
			ready := 0
			b := newSite(t, func(line string) {
				if strings.Contains(line, "would look for networks") {
					ready++
				}
			})
			for i, change := range []func(c *keys.Client){func(c *keys.Client) { c.RequireSource = true }, widen,
				func(c *keys.Client) { widen(c); c.RequireSource = true }} {
				b.write(change)
				if err := reads(b); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if want := min(i, 1); ready != want {
					t.Errorf("%s, %s, change %d: the firewall got ready %d times, want %d", name, what, i, ready, want)
				}
			}
		}
	}
}
