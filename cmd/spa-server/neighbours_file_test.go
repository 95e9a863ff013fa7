package main

import (
	"os"
	"path/filepath"
	"strings"

	"sallyport/spa/lab"
)

// hostRules is a host whose administrator keeps its rules in a file that begins with "flush ruleset", as Debian's
// nftables.service loads it.
type hostRules struct {
	shell
	text string
	with func() string // what else is in the file
}

// shuttingHost drops by default and allows ssh.
const shuttingHost = `flush ruleset
table inet host {
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto icmpv6 accept
		tcp dport 22 accept
	}
}
`

func nothing() string { return "" }

// newHostRules returns such a host, which knows nothing of ours.
func newHostRules(g *gateway) tool { return &hostRules{shell{g: g}, shuttingHost, nothing} }

// newHostRulesWithGuard returns one whose file contains our guard too.
func newHostRulesWithGuard(g *gateway) tool {
	return &hostRules{shell{g: g}, shuttingHost, func() string {
		return g.must("spa-server", "guard",
			"--print", "--config", g.dir)
	}}
}

// newAdmittingHost returns one that shuts ssh too, except to the members of the sets that we write.
func newAdmittingHost(g *gateway) tool {
	return &hostRules{shell{g: g}, "flush ruleset\n" + dropping, nothing}
}

func (h *hostRules) begin() { h.g.t.Helper(); h.reload() }
func (h *hostRules) allow() {}
func (h *hostRules) end()   { h.g.t.Helper(); h.run("nft", "flush", "ruleset") }

func (h *hostRules) reload() {
	h.g.t.Helper()
	path := filepath.Join(h.g.t.TempDir(), "nftables.conf")
	lab.Must(h.g.t, os.WriteFile(path, []byte(strings.Join([]string{h.text, h.with()}, "\n")), 0o644))
	h.run("nft", "-f", path)
}
