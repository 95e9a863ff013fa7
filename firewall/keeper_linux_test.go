package firewall

import (
	"os"
	"testing"

	"sallyport/firewall/internal/keeper"
	"sallyport/spa/lab"
)

// TestKeeperOfAnothersDirectory: root starts the daemon, but only the system user, who owns the state directory, may
// read the files in it. The guard still has its keeper.
func TestKeeperOfAnothersDirectory(t *testing.T) {
	lab.NeedRoot(t)
	s := newOwned(t, func(c *Config) {
		lab.Must(t, os.Chown(c.State, 64123, 64123))
	})
	s.open()
	s.load(0)
	lock := s.keeperLock()
	lab.Eventually(t, "the keeper to hold", func() bool {
		pid, err := keeper.LockHolder(lock)
		return err == nil && pid != 0
	})
	if !s.Persists() {
		t.Error("the keeper has ended")
	}
	s.die()
	s.flushRuleset()
	s.dark("192.0.2.3", "192.0.2.1", "22")
}
