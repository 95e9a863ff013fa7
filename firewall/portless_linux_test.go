package firewall

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestGrantWithoutPorts: a grant of a service without ports is held, ended and kept over a restart as any other, and
// opens nothing. Left is called when grants end, however they do.
func TestGrantWithoutPorts(t *testing.T) { everyBackend(t, grantWithoutPorts) }

func grantWithoutPorts(t *testing.T, k kind) {
	var left atomic.Int32
	s := k.guarded(t, func(c *Config) { c.Left = func() { left.Add(1) } })
	give := func(service string, last time.Duration) {
		t.Helper()
		now := time.Now()
		lab.Must(t, s.Grant(t.Context(), []Grant{{Client: "alice", Service: service,
			Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(last)}}, now))
	}
	held := func(want ...string) {
		t.Helper()
		gs := s.Grants(time.Now())
		if len(gs) != len(want) {
			t.Fatalf("got %v, want %v", gs, want)
		}
		for i := range gs {
			if gs[i].Service != want[i] || len(gs[i].Ports) > 0 {
				t.Errorf("got %v, want %v", gs, want)
			}
		}
	}
	give("a", long)
	give("b", long)
	give("b", long)
	held("a", "b")
	s.dark("192.0.2.2", "192.0.2.1", "22")
	s.open()
	s.load(0)
	held("a", "b")
	if left.Load() != 0 {
		t.Error("a grant has ended")
	}
	if ended := s.revoke(Match{Client: "alice", Services: []string{"a"}}); len(ended) != 1 || left.Load() != 1 {
		t.Errorf("%v ended, and it was said %d times", ended, left.Load())
	}
	held("b")
	c := s.config
	c.Keep = func(Grant) bool { return false }
	lab.Must(t, s.Reconfigure(t.Context(), c, time.Now()))
	if held(); left.Load() != 2 {
		t.Errorf("after a reload it was said %d times", left.Load())
	}
	stop := s.watchUntil()
	defer stop()
	give("c", 50*time.Millisecond)
	lab.Eventually(t, "the end of a grant", func() bool { return left.Load() == 3 && len(s.Grants(time.Now())) == 0 })
}
