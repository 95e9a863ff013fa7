package main

import (
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestGuardPrint: the guard in the host's own rule file shuts the ports on its own, check finds nothing that would
// remove it, and the server takes it over.
func TestGuardPrint(t *testing.T) {
	nft := lab.NeedProgram(t, "nft", "apt-get install nftables")
	g := newGateway(t)
	replaceInFile(t, filepath.Join(g.dir, "server.toml"), "[firewall]\n", "[firewall]\npersist = \"file\"\n")
	printed := g.must("spa-server", "guard", "--print", "--config", g.dir)
	g.serve(":22")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "printing changes nothing")
	reload := func() {
		t.Helper()
		c := &checked{gateway: g}
		c.nft("flush ruleset\n" + printed)
	}
	reload()
	g.wantDark("192.0.2.2", "192.0.2.1:22", "with the file loaded by "+nft)
	g.start()
	g.mustOpen("--for", "10m")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "with a grant")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "for another")
	g.server.stop(syscall.SIGKILL)
	reload()
	g.wantDark("192.0.2.3", "192.0.2.1:22", "reloaded while the server was dead")
}
