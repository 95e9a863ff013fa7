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

// TestGuardByIptables: the weaker backend is reported wherever its guard is loaded, even if it was chosen
// automatically.
func TestGuardByIptables(t *testing.T) {
	lab.NeedProgram(t, "iptables", "apt-get install iptables")
	s := newScene(t, nil)
	weak := []string{"firewall.backend", "iptables"}
	if found := checkWeak(s.config, s.look()); says(found, Warning, weak) {
		t.Errorf("with nftables: got %+v", found)
	}
	s.nft(dropping)
	s.tell("iptables", "-t", "mangle", "-N", "spa-guard")
	if found := checkWeak(s.config, s.look()); !says(found, Warning, weak) {
		t.Errorf("got %+v", found)
	}
}
