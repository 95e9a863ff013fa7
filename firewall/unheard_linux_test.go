package firewall

import (
	"testing"
	"time"

	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// guardedWide returns a site whose guard has room for wideGrants.
func guardedWide(t *testing.T) *site {
	t.Helper()
	return guarded(t, func(c *Config) { c.Guarded = rangesOf("tcp/22 tcp/10000-18191") })
}

// TestWideGrantWakesNobody: the server's own wide grants are no changes by another tool, and it hears of those after.
func TestWideGrantWakesNobody(t *testing.T) {
	s := guardedWide(t)
	s.watch()
	for client := range 5 {
		gs := wideGrants(client)
		s.must(s.Grant(s.Context(), gs, time.Now()))
		s.must(s.Grant(s.Context(), gs, time.Now()))
		lab.Value(s.Revoke(s.Context(), Match{Client: gs[0].Client}, time.Now()))(s)
	}
	if got := s.Condition().PutBack; got != 0 {
		t.Errorf("%d put-backs are counted, and nobody has changed anything", got)
	}
	s.flushRuleset()
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
}

// TestChangedUnheard: the guard is put back after a change that comes while the server does not listen, before its own
// batch or after it, whether Watch waits already or not.
func TestChangedUnheard(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for _, watch := range []string{"waits", "comes later"} {
			t.Run(when+" the batch, Watch "+watch, func(t *testing.T) {
				s := guardedWide(t)
				if watch == "waits" {
					s.watch()
				}
				n := s.backend.(*nftables.Backend)
				s.mu.Lock()
				err := n.Unheard(func() error {
					if when == "before" {
						s.flushRuleset()
					} else {
						defer s.flushRuleset()
					}
					return n.Permanent()
				})
				s.mu.Unlock()
				if (err != nil) != (when == "before") {
					t.Errorf("the batch ended with %v", err)
				}
				if watch != "waits" {
					s.watch()
				}
				lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
			})
		}
	}
}

// TestDeafWatch: a server that can hear no changes any more ends, rather than leaving its guard to other tools.
func TestDeafWatch(t *testing.T) {
	s := guardedWide(t)
	ended := s.watch()
	n := s.backend.(*nftables.Backend)
	s.mu.Lock()
	err := n.Unheard(func() error { return n.Events.Close() })
	s.mu.Unlock()
	if err == nil {
		t.Error("not to hear changes is no error")
	}
	if err := <-ended; err == nil {
		t.Error("Watch goes on")
	}
}
