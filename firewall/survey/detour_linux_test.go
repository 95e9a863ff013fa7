package survey

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sallyport/keys/service"
)

// preroutingChain returns an nft table with a chain that sees packets before routing.
func preroutingChain(kind, text string) string {
	return "table inet t {\nchain c { type " + kind + " hook prerouting priority -100; policy accept;\n" + text +
		"\n}\n}\n"
}

// text formats a detour for the tests below.
func (d Detour) text() string {
	how := "leads"
	if d.Socket {
		how = "hands"
	}
	where := "away"
	if d.Here {
		where = "here"
	}
	may := ""
	if !d.Sure {
		may = "may "
	}
	return fmt.Sprintf("%s%s %s %s %v", may, how, d.To, where, d.Verdict)
}

func nat(text string) []rules { return []rules{{"nft", preroutingChain("nat", text)}} }

func filter(text string) []rules { return []rules{{"nft", preroutingChain("filter", text)}} }

func saved(table, text string) []rules {
	return []rules{{"iptables-nft-restore", "*" + table + "\n" + text + "\nCOMMIT\n"}}
}

var detourTests = []struct {
	name  string
	rules []rules
	port  string
	to    string // empty: over4
	want  string
}{
	{name: "redirect", rules: nat("tcp dport 2222 redirect to :22"), want: "leads 192.0.2.1:22 here 0"},
	{name: "redirect IPv6", rules: nat("tcp dport 2222 redirect to :22"), to: over6,
		want: "leads [2001:db8::1]:22 here 0"},
	{name: "another port", rules: nat("tcp dport 2223 redirect to :22")},
	{name: "another protocol", rules: nat("udp dport 2222 redirect to :22")},
	{name: "another interface", rules: nat("iifname in0 tcp dport 2222 redirect to :22")},
	{name: "redirect of a range", rules: nat("tcp dport 2000-3000 redirect to :22"), want: "leads 192.0.2.1:22 here 0"},
	{name: "redirect of a set", rules: nat("tcp dport { 80, 2222 } redirect to :22"), want: "leads 192.0.2.1:22 here 0"},
	{name: "redirect by a map", rules: nat("meta l4proto tcp redirect to tcp dport map { 2222 : 22, 80 : 8080 }"),
		want: "leads 192.0.2.1:22 here 0"},
	{name: "redirect after a mark", want: "leads 192.0.2.1:22 here 0",
		rules: append(nat("meta mark 7 meta l4proto tcp redirect to :22"), rules{"nft",
			"table ip m { chain c { type filter hook prerouting priority -150; tcp dport 2222 meta mark set 7; }\n}"})},
	{name: "redirect of what is for others", rules: nat("tcp dport 2222 redirect to :22"), to: "203.0.113.5",
		want: "leads 192.0.2.1:22 here 0"},
	{name: "dnat", rules: nat("tcp dport 2222 meta nfproto ipv4 dnat ip to 198.51.100.1:22"),
		want: "leads 198.51.100.1:22 here 0"},
	{name: "dnat IPv6", rules: nat("tcp dport 2222 dnat ip6 to [2001:db8::1]:22"), to: over6,
		want: "leads [2001:db8::1]:22 here 0"},
	{name: "dnat to loopback", rules: nat("tcp dport 2222 dnat ip to 127.0.0.1:22"), want: "leads 127.0.0.1:22 here 0"},
	{name: "dnat away", rules: nat("tcp dport 2222 dnat ip to 198.51.100.5:22"), want: "leads 198.51.100.5:22 away 0"},
	{name: "dnat by a map", rules: nat("meta l4proto tcp dnat ip to tcp dport map { 2222 : 198.51.100.1 . 22 }"),
		want: "leads 198.51.100.1:22 here 0"},
	{name: "dnat by a map of addresses",
		rules: nat("meta l4proto tcp dnat ip to ip daddr . tcp dport map { 192.0.2.1 . 2222 : 198.51.100.1 . 22 }"),
		want:  "leads 198.51.100.1:22 here 0"},
	{name: "dnat at random",
		rules: nat("tcp dport 2222 dnat ip to numgen inc mod 2 map { 0 : 198.51.100.1 . 22, 1 : 198.51.100.5 . 23 }"),
		want:  "may leads 198.51.100.1:22 here 0, may leads 198.51.100.5:23 away 0"},
	{name: "dnat to a range", rules: nat("tcp dport 2222 dnat ip to 198.51.100.1-198.51.100.9")},
	{name: "of certain sources", rules: nat("ip saddr 203.0.113.0/24 tcp dport 2222 redirect to :22"),
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "of all but certain sources", rules: nat("ip saddr != 203.0.113.0/24 tcp dport 2222 redirect to :22"),
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "of certain sources, in a chain",
		rules: []rules{{"nft",
			"table ip t { chain d { tcp dport 2222 redirect to :22; }\n" +
				"chain c { type nat hook prerouting priority -100; ip saddr 203.0.113.0/24 jump d; }\n}"}},
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "of certain sources, by a map",
		rules: []rules{{"nft",
			"table ip t { chain d { tcp dport 2222 redirect to :22; }\n" +
				"chain c { type nat hook prerouting priority -100; ip saddr vmap { 203.0.113.0/24 : jump d }\n}\n}"}},
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "on a condition", rules: nat("tcp dport 2222 meta length 60 redirect to :22"),
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "the first leads", rules: nat("tcp dport 2222 redirect to :22\ntcp dport 2222 redirect to :23"),
		want: "leads 192.0.2.1:22 here 0"},
	{name: "dropped before",
		rules: append(nat("tcp dport 2222 redirect to :22"),
			rules{"nft", "table ip r { chain c { type filter hook prerouting priority -300; tcp dport 2222 drop; }\n}"})},
	{name: "dropped after",
		rules: append(nat("tcp dport 2222 redirect to :22"), rules{"nft", inputChain("tcp dport 2222 accept")}),
		want:  "leads 192.0.2.1:22 here 1"},
	{name: "let in after",
		rules: append(nat("tcp dport 2222 redirect to :22"), rules{"nft", inputChain("tcp dport 22 accept")}),
		want:  "leads 192.0.2.1:22 here 0"},
	{name: "untracked",
		rules: append(nat("tcp dport 2222 redirect to :22"),
			rules{"nft", "table ip r { chain c { type filter hook prerouting priority -300; tcp dport 2222 notrack; }\n}"})},
	{name: "masquerade and snat",
		rules: []rules{{"nft", "table ip t { chain c { type nat hook input priority 100; snat to 203.0.113.1; }\n}"}}},
	{name: "ours",
		rules: []rules{{"nft",
			"table inet spa { chain c { type nat hook prerouting priority -101; tcp dport 2222 redirect to :22; }\n}"}}},

	{name: "REDIRECT", rules: saved("nat", "-A PREROUTING -p tcp --dport 2222 -j REDIRECT --to-ports 22"),
		want: "leads 192.0.2.1:22 here 0"},
	{name: "REDIRECT of many",
		rules: saved("nat", "-A PREROUTING -p tcp -m multiport --dports 80,2000:3000 -j REDIRECT --to-ports 22"),
		want:  "leads 192.0.2.1:22 here 0"},
	{name: "REDIRECT to a range", rules: saved("nat", "-A PREROUTING -p tcp --dport 2222 -j REDIRECT --to-ports 22-25")},
	{name: "REDIRECT of certain sources",
		rules: saved("nat", "-A PREROUTING -s 203.0.113.0/24 -p tcp --dport 2222 -j REDIRECT --to-ports 22"),
		want:  "may leads 192.0.2.1:22 here 0"},
	{name: "DNAT",
		rules: saved("nat", "-A PREROUTING -p tcp --dport 2222 -j DNAT --to-destination 198.51.100.1:22"),
		want:  "leads 198.51.100.1:22 here 0"},
	{name: "DNAT to a port", rules: saved("nat", "-A PREROUTING -p tcp --dport 2222 -j DNAT --to-destination :22"),
		want: "leads 192.0.2.1:22 here 0"},
	{name: "DNAT in a chain of certain sources",
		rules: saved("nat",
			":x -\n-A PREROUTING -s 203.0.113.0/24 -j x\n-A x -p tcp --dport 2222 -j DNAT --to-destination :22"),
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "at random",
		rules: saved("nat",
			"-A PREROUTING -p tcp --dport 2222 -m statistic --mode random --probability 0.5 -j REDIRECT --to-ports 22"),
		want: "may leads 192.0.2.1:22 here 0"},
	{name: "legacy",
		rules: []rules{{"iptables-legacy-restore",
			"*nat\n-A PREROUTING -p tcp --dport 2222 -j REDIRECT --to-ports 22\nCOMMIT\n"}},
		want: "leads 192.0.2.1:22 here 0"},
	{name: "IPv6 of ip6tables", to: over6, want: "leads [2001:db8::1]:22 here 0",
		rules: []rules{{"ip6tables-nft-restore",
			"*nat\n-A PREROUTING -p tcp --dport 2222 -j DNAT --to-destination [2001:db8::1]:22\nCOMMIT\n"}}},
	{name: "docker", rules: []rules{{"iptables-nft-restore", "docker.rules"}}, port: "tcp/8080",
		want: "leads 198.51.100.2:80 away 0"},

	{name: "tproxy",
		rules: filter("tcp dport 2222 meta nfproto ipv4 tproxy ip to 127.0.0.1:22 meta mark set 1 accept"),
		want:  "hands 127.0.0.1:22 here 0"},
	{name: "tproxy to a port", rules: filter("tcp dport 2222 tproxy to :22 accept"), to: over6,
		want: "hands [2001:db8::1]:22 here 0"},
	{name: "tproxy of the other family", rules: filter("tcp dport 2222 tproxy ip to :22 accept"), to: over6},
	{name: "tproxy of what is for others", to: "203.0.113.5",
		rules: filter("fib daddr type != local tcp dport 2222 tproxy to :22 accept"),
		want:  "hands 192.0.2.1:22 here 0"},
	{name: "tproxy and a firewall",
		rules: append(filter("tcp dport 2222 tproxy to :22 accept"), rules{"nft", inputChain("tcp dport 22 accept")}),
		want:  "hands 192.0.2.1:22 here 1"},
	{name: "TPROXY",
		rules: saved("mangle", "-A PREROUTING -p tcp --dport 2222 -j TPROXY --on-port 22 --tproxy-mark 0x1/0x1"),
		want:  "hands 192.0.2.1:22 here 0"},
	{name: "TPROXY legacy",
		rules: []rules{{"iptables-legacy-restore",
			"*mangle\n-A PREROUTING -p tcp --dport 2222 -j TPROXY --on-port 22 --on-ip 127.0.0.1\nCOMMIT\n"}},
		want: "hands 192.0.2.1:22 here 0"},

	{name: "nothing", rules: nil},
}

// TestDetours: rules that lead a port elsewhere before routing are found, with either tool, however they name the port
// and the destination.
func TestDetours(t *testing.T) {
	for _, test := range detourTests {
		t.Run(test.name, func(t *testing.T) {
			h := host(t)
			for _, r := range test.rules {
				load(t, h, r.program, r.text)
			}
			port, to := test.port, test.to
			if port == "" {
				port = "tcp/2222"
			}
			if to == "" {
				to = over4
			}
			var got []string
			for _, d := range read(t, h).Detours(packet(t, port, to)) {
				got = append(got, d.text())
				if d.At.table == "" || d.At.rule == "" {
					t.Errorf("the rule is not named: %+v", d)
				}
			}
			slices.Sort(got) // a map has no order
			if strings.Join(got, ", ") != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestPortRanges: ports that rules treat differently are in different ranges, whatever the rules compare.
func TestPortRanges(t *testing.T) {
	for name, test := range map[string]struct {
		rules []rules
		want  []string
	}{
		"nothing": {nil, []string{"tcp/1-65535"}},
		"one": {[]rules{{"nft", preroutingChain("nat", "tcp dport 2222 redirect to :22")}},
			[]string{"tcp/1-2221", "tcp/2222", "tcp/2223-65535"}},
		"a range": {[]rules{{"nft", preroutingChain("nat", "tcp dport 2000-3000 redirect to :22")}},
			[]string{"tcp/1-1999", "tcp/2000", "tcp/2001-2999", "tcp/3000", "tcp/3001-65535"}},
		"both": {[]rules{{"nft", preroutingChain("nat", "tcp sport 7 tcp dport 2222 redirect to :22")}},
			[]string{"tcp/1-2221", "tcp/2222", "tcp/2223-65535"}},
		"a set": {[]rules{{"nft", preroutingChain("nat", "tcp dport { 80, 443 } redirect to :22")}},
			[]string{"tcp/1-79", "tcp/80", "tcp/81-442", "tcp/443", "tcp/444-65535"}},
		"a map": {[]rules{{"nft",
			preroutingChain("nat",
				"meta l4proto tcp dnat ip to ip daddr . tcp dport map { 192.0.2.1 . 80 : 198.51.100.5 . 8080 }")}},
			[]string{"tcp/1-79", "tcp/80", "tcp/81-65535"}},
		"all": {[]rules{{"nft", preroutingChain("nat", "tcp dport 65535 redirect to :22")}},
			[]string{"tcp/1-65534", "tcp/65535"}},
		"input": {[]rules{{"nft", inputChain("tcp dport 80 accept")}}, []string{"tcp/1-65535"}},
		"iptables": {[]rules{{"iptables-nft-restore",
			"*nat\n-A PREROUTING -p tcp -m multiport --dports 80,2000:3000 -j REDIRECT --to-ports 22\nCOMMIT\n"}},
			[]string{"tcp/1-79", "tcp/80", "tcp/81-1999", "tcp/2000", "tcp/2001-2999", "tcp/3000", "tcp/3001-65535"}},
		"legacy": {[]rules{{"iptables-legacy-restore",
			"*nat\n-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 22\nCOMMIT\n"}},
			[]string{"tcp/1-79", "tcp/80", "tcp/81-65535"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			for _, r := range test.rules {
				load(t, h, r.program, r.text)
			}
			r := read(t, h)
			var got []string
			for _, p := range r.PortRanges(service.TCP) {
				got = append(got, p.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if leads := name != "nothing" && name != "input"; r.Leads() != leads {
				t.Errorf("got %v from Leads", r.Leads())
			}
		})
	}
	r := &Ruleset{}
	got := r.PortRanges(service.TCP, service.Ports{Proto: service.TCP, Low: 22, High: 25},
		service.Ports{Proto: service.UDP, Low: 53, High: 53})
	want := []service.Ports{{Proto: service.TCP, Low: 1, High: 21}, {Proto: service.TCP, Low: 22, High: 25},
		{Proto: service.TCP, Low: 26, High: 65535}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
