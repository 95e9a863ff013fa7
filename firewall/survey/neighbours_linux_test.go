package survey

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// rules is a rule set and the program that loads it.
type rules struct{ program, text string }

var (
	ufwRules       = []rules{{"iptables-nft-restore", "ufw.rules"}, {"ip6tables-nft-restore", "ufw6.rules"}}
	legacyRules    = []rules{{"iptables-legacy-restore", "ufw.rules"}, {"ip6tables-legacy-restore", "ufw6.rules"}}
	firewalldRules = []rules{{"nft", "firewalld.nft"}}
	leadsOn        = rules{"nft", "table inet nat { chain pre { type nat hook prerouting priority -100; tcp dport " +
		"2201 redirect to :22; " +
		"tcp dport 2200 dnat ip to 198.51.100.2:22; tcp dport 2200 dnat ip6 to [2001:db8:1::2]:22; }\n}"}
)

var neighbourTests = []struct {
	name     string
	rules    []rules
	port, to string
	want     Verdict
	says     []string // in place and advice
	sources  bool
	answer   Answer
}{
	{name: "no rules", port: "tcp/22", to: over4},
	{name: "ufw drops", rules: ufwRules, port: "tcp/22", to: over4, want: Drops,
		says: []string{"iptables table filter, chain INPUT, policy drop", "ufw allow 22/tcp"}},
	{name: "ufw drops IPv6", rules: ufwRules, port: "tcp/22", to: over6, want: Drops,
		says: []string{"ip6tables table filter", "ufw allow 22/tcp"}},
	{name: "ufw drops UDP", rules: ufwRules, port: "udp/137", to: over4, want: Drops,
		says: []string{"chain ufw-skip-to-policy-input, rule -A ufw-skip-to-policy-input -j DROP", "ufw allow 137/udp"}},
	{name: "ufw allows", rules: ufwRules, port: "tcp/80", to: over4},
	{name: "ufw allows IPv6", rules: ufwRules, port: "tcp/80", to: over6},
	{name: "ufw limits", rules: ufwRules, port: "tcp/2222", to: over4},
	{name: "ufw allows an office", rules: ufwRules, port: "tcp/5432", to: over4, want: Drops, sources: true,
		says: []string{"ufw allow 5432/tcp"}},
	{name: "legacy ufw drops", rules: legacyRules, port: "tcp/22", to: over4, want: Drops,
		says: []string{"iptables-legacy table filter", "ufw allow"}},
	{name: "legacy ufw drops IPv6", rules: legacyRules, port: "tcp/22", to: over6, want: Drops,
		says: []string{"ip6tables-legacy table filter"}},
	{name: "legacy ufw allows", rules: legacyRules, port: "tcp/80", to: over4},
	{name: "firewalld drops", rules: firewalldRules, port: "tcp/22", to: over4, want: Drops, sources: true,
		answer: Unreachable,
		says: []string{"table inet firewalld, chain filter_IN_public, rule handle",
			"firewall-cmd --zone=public --add-port=22/tcp"}},
	{name: "firewalld drops IPv6", rules: firewalldRules, port: "tcp/22", to: over6, want: Drops, answer: Unreachable},
	{name: "firewalld allows", rules: firewalldRules, port: "tcp/80", to: over6},
	{name: "firewalld allows UDP", rules: firewalldRules, port: "udp/60010", to: over4, sources: true},
	{name: "docker leads on", rules: []rules{{"iptables-nft-restore", "docker.rules"}}, port: "tcp/8080", to: over4},
	{name: "docker leads where forward drops", rules: []rules{{"iptables-nft-restore", "docker.rules"}},
		port: "tcp/8081", to: over4, want: Drops,
		says: []string{"chain FORWARD, policy drop", "iptables -I FORWARD -d 198.51.100.3 -p tcp --dport 80 -j ACCEPT"}},
	{name: "docker leaves the host alone", rules: []rules{{"iptables-nft-restore", "docker.rules"}}, port: "tcp/22",
		to: over4},
	{name: "legacy docker leads on", rules: []rules{{"iptables-legacy-restore", "docker.rules"}}, port: "tcp/8080",
		to: over4},
	{name: "one of two drops", rules: []rules{{"nft", inputChain("tcp dport 22 accept")}, ufwRules[0]}, port: "tcp/22",
		to: over4, want: Drops, says: []string{"ufw allow"}},
	{name: "ours by iptables", port: "tcp/22", to: over4, rules: []rules{{"iptables-nft-restore",
		"*mangle\n:spa-guard - [0:0]\n-A PREROUTING -j spa-guard\n-A spa-guard -j DROP\nCOMMIT\n"}}},
	{name: "by hand", rules: []rules{{"nft", inputChain("")}}, port: "tcp/22", to: over4, want: Drops,
		says: []string{"table inet filter, chain input, policy drop",
			"nft insert rule inet filter input tcp dport 22 accept"}},
	{name: "ufw drops what DNAT leads on", rules: append(ufwRules, leadsOn), port: "tcp/2200", to: over4, want: Drops,
		says: []string{"iptables table filter, chain FORWARD, policy drop",
			"ufw route allow proto tcp to 198.51.100.2 port 22"}},
	{name: "ufw drops what DNAT leads on over IPv6", rules: append(ufwRules, leadsOn), port: "tcp/2200", to: over6,
		want: Drops,
		says: []string{"ip6tables table filter, chain FORWARD, policy drop",
			"ufw route allow proto tcp to 2001:db8:1::2 port 22"}},
	{name: "ufw drops what DNAT leads to another port here", rules: append(ufwRules, leadsOn), port: "tcp/2201",
		to: over4, want: Drops, says: []string{"ufw allow 22/tcp"}},
	{name: "nft's own table of a name that iptables has", rules: []rules{
		{"iptables-nft-restore", "*filter\n:FORWARD DROP\nCOMMIT\n"},
		{"nft", "table ip nat { chain pre { type nat hook prerouting priority -100; tcp dport 2200 dnat to " +
			"198.51.100.2:22; }\n}"},
	}, port: "tcp/2200", to: over4, want: Drops,
		says: []string{"iptables table filter, chain FORWARD, policy drop",
			"iptables -I FORWARD -d 198.51.100.2 -p tcp --dport 22 -j ACCEPT"}},
	{name: "by hand, what DNAT leads on",
		rules: []rules{leadsOn,
			{"nft", "table inet filter { chain on { type filter hook forward priority 0; policy drop; }\n}"}},
		port: "tcp/2200", to: over6, want: Drops,
		says: []string{"nft insert rule inet filter on ip6 daddr 2001:db8:1::2 tcp dport 22 accept"}},
	{name: "legacy by hand", port: "tcp/22", to: over4, want: Drops,
		rules: []rules{{"iptables-legacy-restore", "*mangle\n-A PREROUTING -p tcp -j DROP\nCOMMIT\n"}},
		says:  []string{"iptables-legacy -t mangle -I PREROUTING -p tcp --dport 22 -j ACCEPT"}},
}

// TestNeighbours: rule sets like those that other tools write, and what happens to a stranger's packet.
func TestNeighbours(t *testing.T) {
	for _, test := range neighbourTests {
		t.Run(test.name, func(t *testing.T) {
			h := host(t)
			for _, r := range test.rules {
				load(t, h, r.program, r.text)
			}
			got := read(t, h).Judge(packet(t, test.port, test.to))
			if got.Verdict != test.want || got.Sources != test.sources || got.Answer != test.answer {
				t.Errorf("got %+v, want %v", got, test.want)
			}
			p := packet(t, test.port, test.to)
			said := got.At.String() + "; " + got.At.Allow(portsOf(p))
			for _, words := range test.says {
				if !strings.Contains(said, words) {
					t.Errorf("got %q, want %q in it", said, words)
				}
			}
		})
	}
}

func tableOf(chains ...string) string { return "table ip t {\n" + strings.Join(chains, "\n") + "\n}\n" }

func chainOf(name, text string) string { return "chain " + name + " { " + text + "\n}" }

func onInput(rules string) string {
	return chainOf("in", "type filter hook input priority 0; policy accept; "+rules)
}

func early(rule string) string {
	return chainOf("early", "type filter hook prerouting priority -150; "+rule)
}

func raw(rule string) string {
	return chainOf("raw", "type filter hook prerouting priority -300; "+rule)
}

func onNAT(rule string) string {
	return chainOf("nat", "type nat hook prerouting priority -100; "+rule)
}

func onForward(rule string) string {
	return chainOf("on", "type filter hook forward priority 0; policy drop; "+rule)
}

func onIngress(family, device, rule string) string {
	return "table " + family + " t { chain c { type filter hook ingress " + device + " priority 0; " + rule + " }\n}"
}

const meter = "set s { type ipv4_addr; flags dynamic,timeout; timeout 1m; }"

var pathTests = map[string]struct {
	rules string
	want  Verdict
}{
	"prerouting":   {tableOf(early("tcp dport 22 drop")), Drops},
	"output":       {tableOf(chainOf("c", "type filter hook output priority 0; policy drop;")), Passes},
	"other family": {"table ip6 t { chain c { type filter hook input priority 0; policy drop; }\n}", Passes},
	"netdev":       {onIngress("netdev", "device vs", "tcp dport 22 drop;"), Drops},
	"netdev many":  {onIngress("netdev", "devices = { in0, vs }", "policy drop;"), Drops},
	"other device": {onIngress("netdev", "device in0", "policy drop;"), Passes},
	"inet ingress": {onIngress("inet", "device vs", "policy drop;"), Drops},
	"jump":         {tableOf(chainOf("d", "drop"), onInput("jump d\naccept")), Drops},
	"jump returns": {tableOf(chainOf("d", "return\ndrop"), onInput("jump d\ntcp dport 22 accept\ndrop")), Passes},
	"goto":         {tableOf(chainOf("d", "tcp dport 23 accept"), onInput("goto d\ndrop")), Passes},
	"goto in jump": {tableOf(chainOf("e", "tcp dport 23 accept"), chainOf("d", "goto e\naccept"),
		onInput("jump d\ndrop")), Drops},
	"perhaps jump": {tableOf(chainOf("d", "drop"), onInput("ip ttl 64 jump d")), Perhaps},
	"both ways":    {tableOf(onInput("ip ttl 64 drop\ndrop")), Drops},
	"accept once":  {tableOf(onInput("accept")) + strings.Replace(tableOf(onInput("drop")), "ip t", "ip u", 1), Drops},
	"mark set":     {tableOf(early("meta mark set 7"), onInput("meta mark != 7 drop")), Passes},
	"before ct":    {tableOf(raw("ct state new drop")), Passes},
	"invalid raw":  {tableOf(raw("ct state invalid drop")), Drops},
	"after ct":     {tableOf(early("ct state new drop")), Drops},
	"redirect":     {tableOf(onNAT("tcp dport 22 redirect to :2222"), onInput("tcp dport 2222 drop")), Drops},
	"redirected":   {tableOf(onNAT("tcp dport 22 redirect to :2222"), onInput("tcp dport 22 drop")), Passes},
	"dnat local":   {tableOf(onNAT("tcp dport 22 dnat to 198.51.100.1"), onInput("ct status dnat drop")), Drops},
	"dnat away": {tableOf(onNAT("tcp dport 22 dnat to 198.51.100.2:23"), onInput("drop"),
		onForward("oifname in0 ip daddr 198.51.100.2 tcp dport 23 accept")), Passes},
	"dnat, dropped": {tableOf(onNAT("tcp dport 22 dnat to 198.51.100.2"),
		onForward("oifname in0 tcp dport 23 accept")), Drops},
	"dnat perhaps":  {tableOf(onNAT("ip ttl 64 dnat to 198.51.100.2"), onInput("drop")), Perhaps},
	"limit a meter": {tableOf(meter, onInput("add @s { ip saddr limit rate over 5/minute } drop")), Passes},
	"within meter":  {tableOf(meter, onInput("add @s { ip saddr limit rate 5/minute } drop")), Drops},
	"named limit":   {tableOf("limit l { rate 5/second; }", onInput("limit name l accept\ndrop")), Perhaps},
	"named counter": {tableOf("counter l { }", onInput("counter name l accept\ndrop")), Passes},
	"blocked": {tableOf("set s { type ipv4_addr; flags interval; elements = { 0.0.0.0/1, 128.0.0.0/1 } }",
		onInput("ip saddr @s drop")), Passes},
	"our other one": {strings.Replace(tableOf(onInput("drop")), "ip t", "inet spa-next", 1), Passes},
	"our own":       {strings.Replace(tableOf(onInput("drop")), "ip t", "inet spa", 1), Passes},
}

// TestPaths: base chains besides input, and the ways between chains.
func TestPaths(t *testing.T) {
	for name, test := range pathTests {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			load(t, h, "nft", test.rules)
			if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != test.want {
				t.Errorf("got %+v, want %v", got, test.want)
			}
		})
	}
}

// TestNotrack: rules of either tool that leave a port untracked are found, and rules about the state of its
// connections match accordingly.
func TestNotrack(t *testing.T) {
	for name, test := range map[string]struct {
		rules rules
		want  Verdict
	}{
		"nft": {rules{"nft",
			"table ip t { chain c { type filter hook prerouting priority -300; tcp dport 22 notrack; }\n}"}, Drops},
		"other": {rules{"nft",
			"table ip t { chain c { type filter hook prerouting priority -300; tcp dport 23 notrack; }\n}"}, Passes},
		"perhaps": {rules{"nft",
			"table ip t { chain c { type filter hook prerouting priority -300; ip ttl 64 notrack; }\n}"}, Perhaps},
		"CT": {rules{"iptables-nft-restore", "*raw\n-A PREROUTING -p tcp --dport 22 -j CT --notrack\nCOMMIT\n"}, Drops},
		"legacy": {rules{"iptables-legacy-restore", "*raw\n-A PREROUTING -p tcp --dport 22 -j CT --notrack\nCOMMIT\n"},
			Drops},
		"CT zone": {rules{"iptables-nft-restore", "*raw\n-A PREROUTING -p tcp --dport 22 -j CT --zone 1\nCOMMIT\n"}, Passes},
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			load(t, h, test.rules.program, test.rules.text)
			load(t, h, "nft", inputChain("ct state new accept"))
			got := read(t, h).Judge(packet(t, "tcp/22", over4))
			if got.Untracked != test.want || got.Verdict != test.want {
				t.Errorf("got %+v, want %v for both", got, test.want)
			}
			if got.Untracked != Passes && got.Notrack.table == "" {
				t.Error("the place is not named")
			}
			load(t, h, "nft", "delete table inet filter\n"+inputChain("ct direction original accept"))
			if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != test.want {
				t.Errorf("a rule about the direction: got %+v, want %v", got, test.want)
			}
		})
	}
}

// TestMember: a set of grants in the administrator's table lets its members in, and no other sender.
func TestMember(t *testing.T) {
	h := host(t)
	load(t, h, "nft", `table inet filter {
set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }
chain input { type filter hook input priority 0; policy drop;
ip saddr . meta l4proto . th dport @spa4 accept
}
}`)
	r, p := read(t, h), packet(t, "tcp/22", over4)
	if got := r.Judge(p); got.Verdict != Drops || !got.Sources {
		t.Errorf("a stranger: got %+v", got)
	}
	p.Members = []Set{{"inet", "filter", "spa4"}}
	if got := r.Judge(p); got.Verdict != Passes {
		t.Errorf("a member: got %+v", got)
	}
	p.Members = []Set{{"inet", "other", "spa4"}}
	if got := r.Judge(p); got.Verdict != Drops {
		t.Errorf("a member of another table's set: got %+v", got)
	}
}

// TestSources: only rules about addresses that an outside host may have make an answer depend on the source.
func TestSources(t *testing.T) {
	h := host(t)
	for rule, want := range map[string]bool{
		"ip saddr 198.51.100.0/24 accept":              true,
		"ip saddr 198.51.100.0/24 tcp dport 23 drop":   false,
		"ip saddr 198.51.100.0/24 drop":                false,
		"ip saddr 198.51.100.0/24 tcp dport 23 accept": false,
		"ip saddr { 198.51.100.0/24 } accept":          true,
		"ip saddr != 198.51.100.0/24 drop":             true,
		"ip saddr 127.0.0.0/8 accept":                  false,
		"ip saddr 169.254.0.0/16 accept":               false,
		"ip saddr 224.0.0.0/4 accept":                  false,
		"ip6 saddr fe80::/10 accept":                   false,
	} {
		load(t, h, "nft", "flush ruleset\n"+inputChain(rule))
		if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != Drops || got.Sources != want {
			t.Errorf("%s: got %+v, want it to depend on the source: %v", rule, got, want)
		}
	}
	load(t, h, "nft", "flush ruleset\n"+inputChain("ip6 saddr fe80::/10 accept", "ip6 saddr ::1 accept"))
	if got := read(t, h).Judge(packet(t, "tcp/22", over6)); got.Verdict != Drops || got.Sources {
		t.Errorf("link-local and loopback: got %+v", got)
	}
	load(t, h, "nft", "flush ruleset")
	for rule, want := range map[string]bool{"-s 198.51.100.0/24 -j ACCEPT": true, "-s 127.0.0.0/8 -j ACCEPT": false,
		"-s 198.51.100.0/24 -j DROP": false} {
		load(t, h, "iptables-nft-restore", "*filter\n:INPUT DROP\n-A INPUT "+rule+"\nCOMMIT\n")
		if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != Drops || got.Sources != want {
			t.Errorf("%s: got %+v, want it to depend on the source: %v", rule, got, want)
		}
	}
}

// TestReadChangesNothing: Read changes neither the kernel's rule set nor the tables that iptables lists.
func TestReadChangesNothing(t *testing.T) {
	h := host(t)
	before := listing(t, h)
	read(t, h)
	if after := listing(t, h); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	load(t, h, "iptables-nft-restore", "*filter\n-A INPUT -j DROP\nCOMMIT\n")
	load(t, h, "nft", "firewalld.nft")
	before = listing(t, h)
	read(t, h)
	if after := listing(t, h); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestLinks: Read finds the interfaces of the host.
func TestLinks(t *testing.T) {
	h := host(t)
	r := read(t, h)
	i := slices.IndexFunc(r.Links, func(l Link) bool { return l.Name == "vs" })
	if i < 0 || !r.Links[i].Up || r.Links[i].Loopback || !slices.Contains(r.Links[i].Prefixes,
		netip.MustParsePrefix("192.0.2.1/24")) {
		t.Errorf("got %+v", r.Links)
	}
	lo := slices.IndexFunc(r.Links, func(l Link) bool { return l.Name == "lo" })
	if lo < 0 || !r.Links[lo].Loopback {
		t.Errorf("got %+v", r.Links)
	}
}

// TestTable: tables are found by name, and whether they are owned and persistent.
func TestTable(t *testing.T) {
	h := host(t)
	load(t, h, "nft", "table inet spa { chain c { }\n}")
	load(t, h, "iptables-nft-restore", "*mangle\n:SPA - [0:0]\n-A PREROUTING -j SPA\nCOMMIT\n")
	r := read(t, h)
	if got, ok := r.Table("inet", "spa"); !ok || got.Owned || got.Persistent {
		t.Errorf("got %+v, %v", got, ok)
	}
	if _, ok := r.Table("ip", "spa"); ok {
		t.Error("a table that is not there was found")
	}
	if !r.Chain("ip", "mangle", "SPA") || r.Chain("ip6", "mangle", "SPA") || r.Chain("ip", "mangle", "OTHER") {
		t.Error("the chain SPA is only in mangle of IPv4")
	}
}
