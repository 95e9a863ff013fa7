package firewall

import (
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestDarkUntilGranted(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.dark(f.alice, f.gateway, "22")
		s.grant("alice", f.alice, long)
		s.connect(f.alice, f.gateway, "22")
		s.dark(f.stranger, f.gateway, "22")
	})
}

func TestSessionOutlivesGrant(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.grant("alice", f.alice, long)
		session := s.connect(f.alice, f.gateway, "22")
		s.shorten(Match{Client: "alice"}, 500*time.Millisecond)
		lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "22") })
		s.echoes(session)
		s.dark(f.alice, f.gateway, "22")
		if n := len(s.GrantsOf("alice", time.Now())); n != 0 {
			t.Errorf("got %d grants held after the end, want 0", n)
		}
	})
}
