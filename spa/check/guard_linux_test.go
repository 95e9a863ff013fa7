package check

import (
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestGuardBeforeADryRun: a guard that stands from before lets nobody in while the server only pretends to.
func TestGuardBeforeADryRun(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	s := newScene(t, func(c *config.Config) { c.Firewall.Backend = "dry-run" })
	if found := checkGuard(s.config, s.look()); !says(found, Problem, []string{"guard", "an earlier one", "teardown"}) {
		t.Errorf("with a guard: got %+v", found)
	}
	s.nft(dropping) // flushes what there was
	if found := checkGuard(s.config, s.look()); len(found) != 0 {
		t.Errorf("without one: got %+v", found)
	}
}
