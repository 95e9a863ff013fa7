package strict

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	words := []string{"grants", "grants_per_hour", "live_nonces", "for", "max_for"}
	for in, want := range map[string]string{
		"grant": "grants", "Grants": "grants", "garnts": "grants", "granst": "grants", "live-nonces": "live_nonces",
		"live_nonce": "live_nonces",
		"fro":        "for", "fo": "for", "x": "", "fxx": "", "window": "", "limits": "", "": "",
		strings.Repeat("grants", 20): "",
	} {
		if got := Nearest(in, words); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
