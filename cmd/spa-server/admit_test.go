package main

import (
	"syscall"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// dropping is an administrator's own table that drops everything except the members of the two sets.
const dropping = `table inet filter {
	set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }
	set spa6 { type ipv6_addr . inet_proto . inet_service; flags timeout; }
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		ip saddr 192.0.2.7 accept
		ip saddr . meta l4proto . th dport @spa4 accept
		ip6 saddr . meta l4proto . th dport @spa6 accept
		drop # not by the policy alone: the kernel sets it an instant after the rules
	}
}
`

// admitting switches the file to mode "admit", with the sets of dropping.
func (g *gateway) admitting() {
	g.t.Helper()
	g.set("firewall", "mode", `"admit"`)
	g.rewrite("server.toml", `(?m)^# \[firewall\.admit\].*`, "[firewall.admit]\ntable = \"inet filter\"\nset4 = "+
		"\"spa4\"\nset6 = \"spa6\"")
}

// TestAdmit: on a host that drops by default, grants go into the sets of its administrator's table and end there on
// time, with the server alive or dead. Clients that the administrator lets in are not kept out.
func TestAdmit(t *testing.T) {
	g := newGateway(t)
	lab.Must(t, g.client.AddAddr("vc", "2001:db8::3/64"))
	g.nft(g.host, dropping)
	g.admitting()
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	for _, way := range []struct{ from, stranger, to string }{{"192.0.2.2", "192.0.2.3", "192.0.2.1:22"},
		{"2001:db8::2", "2001:db8::3", "[2001:db8::1]:22"}} {
		g.wantDark(way.from, way.to, "before the knock")
		r := request()
		r.For = 10 * time.Minute
		g.wantReceipt(way.from, g.seal(r, alice), alice, spa.Granted)
		g.wantOpen(way.from, way.to, "granted")
		g.wantDark(way.stranger, way.to, "granted to another")
		r = request()
		r.Type = spa.TypeClose
		g.wantReceipt(way.from, g.seal(r, alice), alice, spa.Closed)
		g.wantDark(way.from, way.to, "closed")
	}
	g.wantOpen("192.0.2.7", "192.0.2.1:22", "whom the administrator lets in himself")
	g.mustOpen("--for", "10m", "--source", "192.0.2.2")
	g.mustOpen("--for", "2s", "--source", "192.0.2.4")
	g.server.stop(syscall.SIGKILL)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "the server is dead and the grant lives")
	lab.Eventually(t, "a grant to end with the server dead",
		func() bool { return !g.reaches("192.0.2.4", "192.0.2.1:22") })
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "another has ended")
}

// TestAdmitRefuses: the start refuses, by name, sets that grants cannot go into or would never leave.
func TestAdmitRefuses(t *testing.T) {
	const v4 = "set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }"
	const v6 = "set spa6 { type ipv6_addr . inet_proto . inet_service; flags timeout; }"
	for name, test := range map[string]struct{ family, v4, v6, says string }{
		"no table":      {"", "", "", "filter"},
		"another table": {"ip", v4, "", "filter"},
		"no set":        {"inet", v4, "", "spa6"},
		"another type":  {"inet", "set spa4 { type ipv4_addr; flags timeout; }", v6, "spa4"},
		"other family":  {"inet", v4, "set spa6 { type ipv4_addr . inet_proto . inet_service; flags timeout; }", "spa6"},
		"no timeout":    {"inet", "set spa4 { type ipv4_addr . inet_proto . inet_service; }", v6, "spa4"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			if test.family != "" {
				g.nft(g.host, "table "+test.family+" filter {\n"+test.v4+"\n"+test.v6+"\n}\n")
			}
			g.admitting()
			g.launch(g.command("spa-server", "run", "--config", g.dir))
			lab.Eventually(t, "the server to end", g.server.done)
			wantSaid(t, g.server.log(), "error", test.says)
		})
	}
}
