package check

import (
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestGuardBeforeADryRun: an earlier guard that is still loaded lets no client in while the server is on a dry run.
func TestGuardBeforeADryRun(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	s := newScene(t, func(c *config.Config) { c.Firewall.Backend = "dry-run" })
	if found := checkGuard(s.config, s.look()); !says(found, Problem, []string{"guard", "an earlier one", "teardown"}) {
		t.Errorf("with a guard: got %+v", found)
	}
	s.nft(dropping) // flushes the earlier rules
	if found := checkGuard(s.config, s.look()); len(found) != 0 {
		t.Errorf("without one: got %+v", found)
	}
}
