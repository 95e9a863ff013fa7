package firewall

import (
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestFailedReconfigureKeepsGrants: grants that a failed configuration would have ended are there again, even if the
// kernel does not report changes.
func TestFailedReconfigureKeepsGrants(t *testing.T) {
	s := kindNamed(t, "iptables-legacy").guarded(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/2300")) })
	s.serve(":2300")
	s.watch()
	s.grantPorts("alice", "192.0.2.2", long, "tcp/2300")
	s.connect("192.0.2.2", "192.0.2.1", "2300")
	release := s.hold()
	c := s.config
	c.Guarded = c.Guarded[:1]
	if err := s.Reconfigure(s.Context(), c, time.Now()); err == nil {
		t.Fatal("the guard was changed while the lock was held")
	}
	release()
	lab.Eventually(t, "the grant", func() bool { return s.isOpen("192.0.2.2", "192.0.2.1", "2300") })
	s.dark("192.0.2.3", "192.0.2.1", "2300")
}
