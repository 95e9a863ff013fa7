package check

import (
	"net/netip"
	"strings"
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// fail2banNFT is what fail2ban loads for a ban of an address on ports, with the default action of its nftables and of
// its iptables.
func fail2banNFT(addr string) string {
	family, set, kind := "ip", "addr-set-sshd", "ipv4_addr"
	if netip.MustParseAddr(addr).Is6() {
		family, set, kind = "ip6", "addr6-set-sshd", "ipv6_addr"
	}
	return "table inet f2b-table { set " + set + " { type " + kind + "; elements = { " + addr + " } }\n" +
		"chain f2b-chain { type filter hook input priority filter - 1; policy accept; tcp dport { 22 } " + family +
		" saddr @" + set + " reject with icmpx port-unreachable\n}\n}\n"
}

func fail2banIPTables(s *scene, addr string) {
	s.t.Helper()
	restore, reject := "iptables-nft-restore", "icmp-port-unreachable"
	if netip.MustParseAddr(addr).Is6() {
		restore, reject = "ip6tables-nft-restore", "icmp6-port-unreachable"
	}
	s.feed("*filter\n:f2b-sshd -\n-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd\n-A f2b-sshd -s "+addr+
		" -j REJECT --reject-with "+reject+"\n-A f2b-sshd -j RETURN\nCOMMIT\n", restore, "--noflush")
}

const unban = "fail2ban-client unban "

var fromTests = []struct {
	name   string
	from   string
	config func(*config.Config)
	spoil  func(*scene)
	want   Severity // empty: nothing is found
	says   []string
}{
	{name: "nothing", from: "192.0.2.7"},
	{name: "nothing, over IPv6", from: "2001:db8::7"},
	{name: "banned by nftables", from: "192.0.2.7", spoil: beside(fail2banNFT("192.0.2.7")), want: Problem,
		says: []string{"table inet f2b-table, chain f2b-chain", "drops new connections to tcp/22 from 192.0.2.7",
			unban + "192.0.2.7"}},
	{name: "banned by nftables, over IPv6", from: "2001:db8::7", spoil: beside(fail2banNFT("2001:db8::7")),
		want: Problem, says: []string{"f2b-chain", unban + "2001:db8::7"}},
	{name: "banned by iptables", from: "192.0.2.7", spoil: func(s *scene) { fail2banIPTables(s, "192.0.2.7") },
		want: Problem,
		says: []string{"iptables table filter, chain f2b-sshd", "from 192.0.2.7", unban + "192.0.2.7"}},
	{name: "banned by iptables, over IPv6", from: "2001:db8::7", spoil: func(s *scene) {
		fail2banIPTables(s,
			"2001:db8::7")
	}, want: Problem, says: []string{unban + "2001:db8::7"}},
	{name: "another is banned by nftables", from: "192.0.2.8", spoil: beside(fail2banNFT("192.0.2.7"))},
	{name: "another is banned by iptables", from: "192.0.2.8",
		spoil: func(s *scene) { fail2banIPTables(s, "192.0.2.7") }},
	{name: "a network is blocked", from: "192.0.2.7",
		spoil: beside("table inet t { set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/28 } }\nchain c { " +
			"type filter hook input priority 1; ip saddr @s drop; }\n}\n"),
		want: Problem, says: []string{"table inet t, chain c",
			"nft insert rule inet t c ip saddr 192.0.2.7 tcp dport 22 accept"}},
	{name: "beside a network that is blocked", from: "192.0.2.17",
		spoil: beside("table inet t { set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/28 } }\nchain c { " +
			"type filter hook input priority 1; ip saddr @s drop; }\n}\n")},
	{name: "blocked at the port by a set", from: "192.0.2.7",
		spoil: beside("table inet t { set s { type ipv4_addr . inet_service; elements = { 192.0.2.7 . 22 } }\nchain c { " +
			"type filter hook input priority 1; ip saddr . tcp dport @s drop; }\n}\n"),
		want: Problem, says: []string{"table inet t, chain c"}},
	{name: "a range of addresses", from: "192.0.2.7", spoil: func(s *scene) {
		s.feed("*filter\n-A INPUT -m iprange --src-range 192.0.2.5-192.0.2.9 -p tcp --dport 22 -j DROP\nCOMMIT\n",
			"iptables-nft-restore")
	}, want: Problem, says: []string{"iptables -I INPUT -s 192.0.2.7 -p tcp --dport 22 -j ACCEPT"}},
	{name: "perhaps, by an ipset", from: "192.0.2.7", spoil: func(s *scene) {
		s.tell("ipset", "create", "blocked", "hash:ip")
		s.feed("*filter\n-A INPUT -m set --match-set blocked src -j DROP\nCOMMIT\n", "iptables-nft-restore")
	}, want: Notice, says: []string{"may drop new connections to tcp/22 from 192.0.2.7"}},
	{name: "perhaps, by an ipset of fail2ban", from: "192.0.2.7", spoil: func(s *scene) {
		s.tell("ipset", "create", "f2b-sshd", "hash:ip")
		s.feed("*filter\n-A INPUT -p tcp -m multiport --dports 22 -m set --match-set f2b-sshd src -j REJECT\nCOMMIT\n",
			"iptables-nft-restore")
	}, want: Notice, says: []string{"may drop", unban + "192.0.2.7"}},
	{name: "not one of those let in", from: "192.0.2.7", spoil: certain, want: Problem, says: []string{"policy drop",
		"from 192.0.2.7", "ip saddr 192.0.2.7 tcp dport 22 accept"}},
	{name: "one of those let in", from: "198.51.100.7", spoil: certain},
	{name: "everybody is dropped", from: "192.0.2.7",
		spoil: withRules("table inet filter { chain input { type filter hook input priority 0; policy drop; }\n}"),
		want:  Problem, says: []string{"drops new connections to tcp/22: ", "inet filter input tcp dport 22 accept"}},
	{name: "its knock is dropped", from: "192.0.2.7",
		spoil: beside("table netdev t { chain c { type filter hook ingress device vs priority 0; ip saddr 192.0.2.7 udp " +
			"dport 62201 drop; }\n}"),
		want: Problem, says: []string{"knock_ports", "table netdev t",
			"from 192.0.2.7 to udp/62201 before a knock can be seen"}},
	{name: "by an interface that is not listened to", from: "192.0.2.7",
		config: func(c *config.Config) { c.Capture.Interfaces = []string{"lo"} },
		want:   Problem, says: []string{"capture.interfaces", "arrives on vs", "the server does not see its knocks"}},
	{name: "an address of the host", from: "192.0.2.1", want: Notice,
		says: []string{"--from", "192.0.2.1 is this host's own"}},
	{name: "no way to it", from: "2001:db8:99::1", want: Problem,
		says: []string{"--from", "it is unknown on which interface 2001:db8:99::1 arrives", "ip route get 2001:db8:99::1"}},
	{name: "admitted", from: "192.0.2.7", config: admitting, spoil: withRules(admitTable(admits4 + admits6))},
	{name: "admitted, and banned", from: "192.0.2.7", config: admitting,
		spoil: withRules(admitTable(admits4+admits6) + fail2banNFT("192.0.2.7")),
		want:  Problem, says: []string{"f2b-chain", unban + "192.0.2.7"}},
	{name: "a machine behind", from: "192.0.2.7", config: behind,
		spoil: beside("table inet f { chain c { type filter hook forward priority 0; ip saddr 192.0.2.7 ip daddr " +
			"198.51.100.5 drop; }\n}\n"),
		want: Problem, says: []string{"table inet f, chain c", "tcp/23 from 192.0.2.7"}},
}

// TestCheckFrom: another tool's block of one address is found for that address, with the command that lifts it, and for
// no other.
func TestCheckFrom(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	for _, test := range fromTests {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, test.config)
			lab.Must(t, s.on.Route("198.51.100.0/24", "192.0.2.2"))
			if test.spoil != nil {
				test.spoil(s)
			}
			h := s.look()
			h.from = netip.MustParseAddr(test.from)
			found := append(checkTables(s.config, h), checkFrom(s.config, h)...)
			pasteable(t, found)
			if test.want == "" {
				if len(found) != 0 {
					t.Errorf("got %+v, want nothing", found)
				}
				return
			}
			if len(found) != 1 || !says(found, test.want, test.says) {
				t.Errorf("got %+v, want a %q that says %q", found, test.want, test.says)
			}
			if len(found) > 0 && strings.Count(found[0].Advice, unban) > 1 {
				t.Errorf("it says the same command again: %q", found[0].Advice)
			}
		})
	}
}

// certain lets in certain addresses only.
func certain(s *scene) {
	s.t.Helper()
	withRules("table inet filter { chain input { type filter hook input priority 0; policy drop; ip saddr " +
		"198.51.100.0/24 accept; ip6 saddr ::/0 accept; }\n}")(s)
}
