package survey

import (
	"net/netip"
	"slices"
	"testing"
)

// conditionTests are rules of a table that drops, and the verdicts on a stranger's tcp/22.
var conditionTests = map[string]Verdict{
	"-j ACCEPT":                                                         Passes,
	"-j LOG --log-prefix \"-j ACCEPT\"":                                 Drops,
	"-p tcp -j ACCEPT":                                                  Passes,
	"-p udp -j ACCEPT":                                                  Drops,
	"! -p udp -j ACCEPT":                                                Passes,
	"-p 6 -j ACCEPT":                                                    Passes,
	"-p icmp -m icmp --icmp-type 8 -j ACCEPT":                           Drops,
	"-p tcp --dport 22 -j ACCEPT":                                       Passes,
	"-p tcp --dport 23 -j ACCEPT":                                       Drops,
	"-p tcp ! --dport 23 -j ACCEPT":                                     Passes,
	"-p tcp --dport 20:30 -j ACCEPT":                                    Passes,
	"-p tcp --sport 1024: -j ACCEPT":                                    Passes,
	"-p tcp --sport 22 -j ACCEPT":                                       Drops,
	"-p tcp -m multiport --dports 80,20:22 -j ACCEPT":                   Passes,
	"-p tcp -m multiport --dports 80,443 -j ACCEPT":                     Drops,
	"-p tcp -m multiport --sports 80,443 -j ACCEPT":                     Drops,
	"-p tcp -m multiport --ports 80,22 -j ACCEPT":                       Passes,
	"-i vs -j ACCEPT":                                                   Passes,
	"-i v+ -j ACCEPT":                                                   Passes,
	"-i eth+ -j ACCEPT":                                                 Drops,
	"! -i lo -j ACCEPT":                                                 Passes,
	"-d 192.0.2.1 -j ACCEPT":                                            Passes,
	"-d 192.0.2.0/28 -j ACCEPT":                                         Passes,
	"-d 198.51.100.0/24 -j ACCEPT":                                      Drops,
	"-s 198.51.100.0/24 -j ACCEPT":                                      Drops,
	"! -s 198.51.100.0/24 -j ACCEPT":                                    Passes,
	"-m iprange --src-range 198.51.100.1-198.51.100.9":                  Drops,
	"-m iprange --dst-range 192.0.2.1-192.0.2.9 -j ACCEPT":              Passes,
	"-m iprange --dst-range 192.0.2.2-192.0.2.9 -j ACCEPT":              Drops,
	"-m conntrack --ctstate NEW -j ACCEPT":                              Passes,
	"-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT":              Drops,
	"-m conntrack ! --ctstate ESTABLISHED,RELATED -j ACCEPT":            Passes,
	"-m conntrack --ctstate DNAT -j ACCEPT":                             Drops,
	"-m conntrack --ctdir REPLY -j ACCEPT":                              Drops,
	"-m conntrack --ctorigdstport 22 -j ACCEPT":                         Perhaps,
	"-m state --state NEW -j ACCEPT":                                    Passes,
	"-p tcp --syn -j ACCEPT":                                            Passes,
	"-p tcp ! --syn -j ACCEPT":                                          Drops,
	"-p tcp --tcp-flags ALL SYN -j ACCEPT":                              Passes,
	"-p tcp --tcp-flags ALL NONE -j ACCEPT":                             Drops,
	"-p tcp --tcp-flags SYN,FIN SYN,FIN -j ACCEPT":                      Drops,
	"-p tcp --tcp-flags FIN,ACK NONE -j ACCEPT":                         Passes,
	"-m mark --mark 1 -j ACCEPT":                                        Drops,
	"-m mark --mark 0x0/0xff -j ACCEPT":                                 Passes,
	"-m connmark --mark 1 -j ACCEPT":                                    Drops,
	"-m addrtype --dst-type LOCAL -j ACCEPT":                            Passes,
	"-m addrtype --dst-type BROADCAST,MULTICAST -j ACCEPT":              Drops,
	"-m addrtype --src-type LOCAL -j ACCEPT":                            Drops,
	"-m pkttype --pkt-type broadcast -j ACCEPT":                         Drops,
	"-m limit --limit 5/min -j ACCEPT":                                  Passes,
	"-m hashlimit --hashlimit-upto 5/min --hashlimit-name a -j ACCEPT":  Passes,
	"-m hashlimit --hashlimit-above 5/min --hashlimit-name b -j ACCEPT": Drops,
	"-p tcp -m connlimit --connlimit-above 3 -j ACCEPT":                 Drops,
	"-m recent --name x --rcheck --seconds 60 -j ACCEPT":                Drops,
	"-m recent --name x --set -j ACCEPT":                                Passes,
	"-m comment --comment \"! -j ACCEPT \\\"\" -j ACCEPT":               Passes,
	"-m comment --comment -x -j ACCEPT":                                 Passes,
	"-m time --timestart 09:00 --timestop 17:00 -j ACCEPT":              Perhaps,
	"-m string --string \"x\" --algo bm -j ACCEPT":                      Perhaps,
	"-m statistic --mode random --probability 0.5 -j ACCEPT":            Perhaps,
	"-m length --length 40:100 -j ACCEPT":                               Perhaps,
	"-m policy --dir in --pol ipsec -j ACCEPT":                          Drops,
	"-m policy --dir in --pol none -j ACCEPT":                           Passes,
	"-m physdev --physdev-is-bridged -j ACCEPT":                         Drops,
	"-j REJECT --reject-with tcp-reset -p tcp":                          Drops,
	"-j RETURN":                   Drops,
	"-m ttl --ttl-gt 5 -j ACCEPT": Perhaps,
	"-p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m limit --limit 3/s -j ACCEPT": Passes,
}

// TestConditions: each option, in the form that iptables saves, is understood or may match.
func TestConditions(t *testing.T) {
	h := host(t)
	for rule, want := range conditionTests {
		t.Run(rule, func(t *testing.T) {
			for _, variant := range []string{"nft", "legacy"} {
				feed(t, h, "*filter\n:INPUT DROP\n-A INPUT "+rule+"\nCOMMIT\n", "iptables-"+variant+"-restore")
				if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != want {
					t.Errorf("%s: got %v at %v, want %v", variant, got.Verdict, got.At, want)
				}
				feed(t, h, "*filter\n:INPUT ACCEPT\nCOMMIT\n", "iptables-"+variant+"-restore")
			}
		})
	}
}

// TestTargets: targets that change a packet or lead it elsewhere.
func TestTargets(t *testing.T) {
	for name, test := range map[string]struct {
		rules string
		want  Verdict
	}{
		"mark": {"*mangle\n-A PREROUTING -j MARK --set-mark 7\nCOMMIT\n*filter\n" +
			"-A INPUT -m mark ! --mark 7 -j DROP\nCOMMIT\n", Passes},
		"mark or": {"*mangle\n-A PREROUTING -j MARK --or-mark 0x10\nCOMMIT\n*filter\n" +
			"-A INPUT -m mark --mark 0x10/0x10 -j DROP\nCOMMIT\n", Drops},
		"perhaps mark": {"*mangle\n-A PREROUTING -m length --length 40:100 -j MARK --set-mark 7\nCOMMIT\n*filter\n" +
			"-A INPUT -m mark --mark 7 -j DROP\nCOMMIT\n", Perhaps},
		"redirect": {"*nat\n-A PREROUTING -p tcp --dport 22 -j REDIRECT --to-ports 2222\nCOMMIT\n*filter\n" +
			"-A INPUT -p tcp --dport 2222 -j DROP\nCOMMIT\n", Drops},
		"redirected": {"*nat\n-A PREROUTING -p tcp --dport 22 -j REDIRECT --to-ports 2222\nCOMMIT\n*filter\n" +
			"-A INPUT -p tcp --dport 22 -j DROP\nCOMMIT\n", Passes},
		"dnat state": {"*nat\n-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination 198.51.100.1:2222\nCOMMIT\n" +
			"*filter\n-A INPUT -m conntrack --ctstate DNAT -j DROP\nCOMMIT\n", Drops},
		"dnat range": {"*nat\n-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination 198.51.100.1-198.51.100.9\n" +
			"COMMIT\n*filter\n-A INPUT -j DROP\nCOMMIT\n", Perhaps},
		"goto":      {"*filter\n:x -\n-A INPUT -g x\n-A INPUT -j DROP\n-A x -p udp -j DROP\nCOMMIT\n", Passes},
		"jump":      {"*filter\n:x -\n-A INPUT -j x\n-A INPUT -j DROP\n-A x -p udp -j ACCEPT\nCOMMIT\n", Drops},
		"security":  {"*security\n-A INPUT -j DROP\nCOMMIT\n", Drops},
		"nat input": {"*nat\n-A INPUT -j ACCEPT\nCOMMIT\n", Passes},
		"output":    {"*filter\n-A OUTPUT -j DROP\nCOMMIT\n", Passes},
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			feed(t, h, test.rules, "iptables-nft-restore")
			if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != test.want {
				t.Errorf("got %+v, want %v", got, test.want)
			}
		})
	}
}

// TestUnknownTarget: an unknown target that is not a chain may do anything, and is named.
func TestUnknownTarget(t *testing.T) {
	r := &Ruleset{Links: []Link{{Name: "vs", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}},
		tables: make(map[tableKey]*table)}
	r.addText(legacy, "ip", "iptables-legacy", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j NOVELTY --with x\nCOMMIT\n")
	r.order()
	if got := r.Judge(packet(t, "tcp/22", over4)); got.Verdict != Perhaps ||
		got.At.rule != "-A INPUT -j NOVELTY --with x" {
		t.Errorf("got %+v", got)
	}
}

// TestSplitWords: lines are split as iptables-restore splits them.
func TestSplitWords(t *testing.T) {
	var got []string
	for _, w := range splitWords(`-A INPUT -m comment --comment "a \"b\" \\ c" "" x"y"`) {
		got = append(got, w.text)
	}
	want := []string{"-A", "INPUT", "-m", "comment", "--comment", `a "b" \ c`, "", "xy"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
