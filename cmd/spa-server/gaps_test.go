package main

import (
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// gap is how long a port may be open to a stranger while another tool changes the rule set.
type gap int

const (
	never  gap = iota // not for an instant
	second            // for a second in total, until the running server has restored the guard
	lost              // until the server starts again, as SECURITY.md says
)

// margin is how much longer than that second it may take on a machine that runs other packages' tests too.
const margin = 15 * time.Second

// upset is what another tool does to the rule set, and the permitted gap with the server running and dead.
type upset struct {
	name          string
	do            func(b *beside)
	running, dead gap
}

// commands returns an upset by commands, one after the other.
func commands(running, dead gap, lines ...string) upset {
	return upset{name: strings.Join(lines, "; "), running: running, dead: dead, do: func(b *beside) {
		for _, line := range lines {
			words := strings.Fields(line)
			(&shell{g: b.gateway}).run(words[0], words[1:]...)
		}
	}}
}

// emptied are the commands that flush tables of iptables, which are not ours with nftables.
var emptied = []upset{
	commands(never, never, "iptables -F", "iptables -X", "ip6tables -F", "ip6tables -X"),
	commands(never, never, "iptables -t mangle -F", "iptables -t mangle -X", "ip6tables -t mangle -F",
		"ip6tables -t mangle -X"),
	commands(never, never, "iptables -t raw -F", "iptables -t nat -F", "ip6tables -t raw -F", "ip6tables -t nat -F"),
}

func reloadOf(b *beside) { b.t.Helper(); b.reload() }
func restart(b *beside)  { b.t.Helper(); b.end(); b.begin() }

// gapTest is a gateway whose rule set is upset: its guard, the tool beside it, what the tool does.
type gapTest struct {
	name   string
	edit   func(b *beside)
	tool   func(g *gateway) tool
	upsets []upset

	older []upset // instead, if the kernel does not let tables have an owner (before Linux 6.9)

	// forgets: the replaced rule set held the grants, and only the server restores them.
	forgets bool
}

var gapTests = []gapTest{
	{name: "owned", edit: owned, upsets: append(slices.Clip(emptied), commands(never, never, "nft flush ruleset")),
		older: append(slices.Clip(emptied), commands(second, lost, "nft flush ruleset"))},
	{name: "owned, nftables.conf", edit: owned, tool: newHostRules, upsets: []upset{{"reload", reloadOf, never, never}},
		older: []upset{{"reload", reloadOf, second, lost}}},
	{name: "in nftables.conf", edit: withoutOwner, tool: newHostRulesWithGuard,
		upsets: []upset{{"reload", reloadOf, never, never}}, forgets: true},
	{name: "admit", edit: admitted, tool: newAdmittingHost, upsets: []upset{{"reload", reloadOf, never, never}},
		forgets: true},
	{name: "without an owner", edit: withoutOwner, upsets: append(slices.Clip(emptied),
		commands(second, lost, "nft flush ruleset"))},
	{name: "without an owner, nftables.conf", edit: withoutOwner, tool: newHostRules,
		upsets: []upset{{"reload", reloadOf, second, lost}}},
	{name: "without an owner, ufw", edit: withoutOwner, tool: newUFW, upsets: []upset{{"reload", reloadOf, never, never},
		{"disable, enable", restart, never, never}}},
	{name: "without an owner, firewalld", edit: withoutOwner, tool: newFirewalld,
		upsets: []upset{{"reload", reloadOf, never, never}, {"restart", restart, never, never}}},
	{name: "iptables", edit: byIPTables, upsets: ofIPTables},
	{name: "iptables, ufw", edit: byIPTables, tool: newUFW, upsets: []upset{{"reload", reloadOf, never, never},
		{"disable, enable", restart, never, never}}},
	{name: "iptables, firewalld", edit: byIPTables, tool: newFirewalld,
		upsets: []upset{{"reload", reloadOf, second, lost}, {"restart", restart, second, lost}}},
}

// ofIPTables are upsets of a guard by iptables: only a flush of its own table matters.
var ofIPTables = []upset{
	commands(never, never, "iptables -F", "iptables -X", "ip6tables -F", "ip6tables -X"),
	commands(second, lost, "iptables -t mangle -F", "ip6tables -t mangle -F"),
	commands(never, never, "iptables -t raw -F", "iptables -t nat -F", "ip6tables -t raw -F", "ip6tables -t nat -F"),
	commands(second, lost, "nft flush ruleset"),
}

func byIPTables(b *beside) { b.t.Helper(); b.backend("iptables") }

func owned(*beside) {} // the default

func admitted(b *beside) { b.t.Helper(); b.admitting() }

// stays lets time pass in which nothing happens, and strangers try.
func (b *beside) stays(d time.Duration) {
	b.t.Helper()
	begun := time.Now()
	lab.Eventually(b.t, "time to pass", func() bool { return time.Since(begun) > d })
}

func withoutOwner(b *beside) {
	b.t.Helper()
	replaceInFile(b.t, filepath.Join(b.dir, "server.toml"), "[firewall]\n", "[firewall]\npersist = \"file\"\n")
}

// TestGaps: with a connection attempt each millisecond in each family, while other tools change the rule set, the
// guarded port is open to no stranger, or no longer than promised.
func TestGaps(t *testing.T) {
	for _, test := range gapTests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBeside(t, "22", true, test.tool)
			b.findTheWay()
			test.edit(b)
			b.begin()
			b.allow()
			upsets := test.upsets
			if test.older != nil && !b.canPersist() {
				upsets = test.older
			}
			for _, u := range upsets {
				b.start()
				b.knock(spa.TypeOpen, spa.Granted)
				sessions := b.sessions()
				b.upset("running", u.name, u.running, u.do)
				b.remembers(u.name)
				b.server.stop(syscall.SIGKILL)
				b.upset("dead", u.name, u.dead, u.do)
				if test.forgets {
					b.wantReach(u.name + ", the server dead")
					b.start()
				}
				b.remembers(u.name)
				b.liveOn(sessions)
				b.server.stop(syscall.SIGTERM)
			}
		})
	}
}

// canPersist reports whether the kernel lets tables have an owner.
func (b *beside) canPersist() (can bool) {
	b.t.Helper()
	lab.Must(b.t, b.host.Do(func() error { can = firewall.CanPersist(); return nil }))
	return can
}

// remembers waits until a grant works again, and for no one else.
func (b *beside) remembers(when string) {
	b.t.Helper()
	for _, from := range b.granted() {
		lab.Eventually(b.t, when+": what "+from+" was granted", func() bool { return b.reaches(from, b.target(from)) })
	}
	b.wantReach(when, b.granted()...)
}

// findTheWay connects from everywhere, so that neighbour discovery delays no later attempt.
func (b *beside) findTheWay() {
	b.t.Helper()
	for _, from := range b.from {
		conn, err := lab.Dial(b.client, from, b.target(from), lab.Patience)
		if err != nil {
			b.t.Fatalf("without a guard: %v", err)
		}
		conn.Close()
	}
}

// upset tries continuously while something is done, and compares the outcome with what is permitted.
func (b *beside) upset(server, name string, allowed gap, do func(b *beside)) {
	b.t.Helper()
	tried := map[string]*lab.Attempts{
		"IPv4": lab.Attempt(b.t, b.client, stranger4, b.target(stranger4)),
		"IPv6": lab.Attempt(b.t, b.client, stranger6, b.target(stranger6)),
	}
	do(b)
	switch allowed {
	case second:
		for _, stranger := range []string{stranger4, stranger6} {
			lab.Eventually(b.t, "the guard to be back", func() bool { return !b.reaches(stranger, b.target(stranger)) })
		}
	case lost:
		b.start()
	}
	b.stays(200 * time.Millisecond)
	for family, attempts := range tried {
		outcome := lab.Value(attempts.Stop())(b.t)
		b.t.Logf("%s, the server %s, %s: %v", name, server, family, outcome)
		if allowed == never && outcome.Through > 0 || allowed == second && outcome.Open > time.Second+margin {
			b.t.Errorf("%s, the server %s, %s: %v\nserver:\n%s", name, server, family, outcome, b.server.log())
		}
	}
}
