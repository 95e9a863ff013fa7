package check

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"sallyport/firewall/survey"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// held spoils a scene by rules and by a process that listens.
func held(rules, name string, addrs ...string) func(*scene) {
	return func(s *scene) {
		beside(rules)(s)
		s.hold(name, addrs...)
	}
}

// besideTests are about a second port of a guarded service.
func besideTests() []hostTest {
	web := services("tcp/443")
	open := also("tcp dport { 80, 443 }")
	return []hostTest{
		{name: "the same process", config: web,
			spoil: held(open, "webd", "0.0.0.0:443", "0.0.0.0:80"),
			want:  Warning, says: []string{"tcp/80", "webd serves the guarded tcp/443 and listens at [::]:80 too",
				"strangers reach it", `add "tcp/80" to the ports of service.s443`}},
		{name: "the same process over IPv6", config: web,
			spoil: held(open, "webd", "0.0.0.0:443", "[2001:db8::1]:80"),
			want:  Warning, says: []string{"tcp/80", "listens at [2001:db8::1]:80 too"}},
		{name: "the same process, behind the firewall", config: web,
			spoil: held(also("tcp dport 443"), "webd", "0.0.0.0:443", "0.0.0.0:80")},
		{name: "the same process on loopback", config: web, spoil: held(open, "webd", "0.0.0.0:443", "127.0.0.1:80")},
		{name: "the same process, both guarded", config: services("tcp/443", "tcp/80"),
			spoil: held(open, "webd", "0.0.0.0:443", "0.0.0.0:80")},
		{name: "two processes of one name", config: web, spoil: func(s *scene) {
			beside(open)(s)
			s.hold("webd", "0.0.0.0:443")
			s.hold("webd", "0.0.0.0:80")
		}},
		{name: "a process that listens for others", config: web, spoil: held(open, "inetd", "0.0.0.0:443", "0.0.0.0:80")},
		{name: "a UDP port of the same process", spoil: func(s *scene) {
			beside(also("udp dport 5000"))(s)
			s.listenUDP("0.0.0.0:5000") // by this process, as tcp/22
		}},
		{name: "a TCP port of the process of a guarded UDP port", config: services("udp/5000"), spoil: func(s *scene) {
			beside(also("udp dport 5000") + also("tcp dport 5001"))(s)
			s.listenUDP("0.0.0.0:5000")
			s.hold("other", "0.0.0.0:5001")
		}},
	}
}

// unitTests are about sockets that systemd holds for a service.
func unitTests() []hostTest {
	web, unit := services("tcp/443"), func(s *scene, name, text string) { s.file("etc/systemd/system/"+name, text) }
	open := also("tcp dport { 80, 443 }")
	return []hostTest{
		{name: "one unit at both", config: web, spoil: func(s *scene) {
			beside(open)(s)
			unit(s, "web.socket", "[Socket]\nListenStream=443\nListenStream=[::]:80\n")
			s.hold("systemd", "0.0.0.0:443", "0.0.0.0:80")
		}, want: Warning, says: []string{"tcp/80", "serves the guarded tcp/443"}},
		{name: "two units of one service", config: web, spoil: func(s *scene) {
			beside(open)(s)
			unit(s, "web.socket", "[Socket]\nListenStream=443\n")
			s.file("usr/lib/systemd/system/plain.socket", "[Socket]\nListenStream=80\nService=web.service\n")
			s.hold("systemd", "0.0.0.0:443", "0.0.0.0:80")
		}, want: Warning, says: []string{"tcp/80", "serves the guarded tcp/443"}},
		{name: "two units of two services", config: web, spoil: func(s *scene) {
			beside(open)(s)
			unit(s, "web.socket", "[Socket]\nListenStream=443\n")
			unit(s, "plain.socket", "[Socket]\nListenStream=80\n")
			s.hold("systemd", "0.0.0.0:443", "0.0.0.0:80")
		}},
		{name: "a unit and its own service", config: web, spoil: func(s *scene) {
			beside(open)(s)
			unit(s, "web.socket", "[Socket]\nListenStream=443\n")
			unit(s, "web.socket.d/more.conf", "[Socket]\nListenStream=\nListenStream=80\n")
			s.hold("systemd", "0.0.0.0:443", "0.0.0.0:80")
		}},
		{name: "a unit of another name that starts sshd", spoil: func(s *scene) {
			beside(also("tcp dport 2222"))(s)
			unit(s, "rescue.socket", "[Socket]\nListenStream=2222\nAccept=yes\n")
			s.file("usr/lib/systemd/system/rescue@.service", "[Service]\nExecStart=-/usr/sbin/sshd -i\n")
			s.hold("systemd", "0.0.0.0:2222")
		}, want: Warning, says: []string{"tcp/2222", "by way of systemd's rescue.socket"}},
	}
}

// knockTests are about what a scanner sees of the knock port.
func knockTests() []hostTest {
	ufw := func(rules string) func(*scene) {
		return func(s *scene) {
			s.nft("table inet spa { chain guard { }\n}\ntable ip6 filter { chain input { type filter hook input priority 0; " +
				"policy drop; tcp dport 22 accept; }\n}\n")
			s.feed("*filter\n:INPUT DROP\n:ufw-before-input -\n:ufw-user-input -\n-A INPUT -j ufw-before-input\n-A "+
				"ufw-before-input -i lo -j ACCEPT\n-A ufw-before-input -j ufw-user-input\n-A ufw-user-input -p tcp --dport 22 -j "+
				"ACCEPT\n"+rules+"COMMIT\n", "iptables-nft-restore")
		}
	}
	return []hostTest{
		{name: "knock port let through", spoil: beside(also("udp dport 62201")),
			want: Warning, says: []string{"knock_ports", "lets udp/62201 through and drops other ports",
				"nft delete rule inet filter input handle"}},
		{name: "knock port let through with others", spoil: beside(also("udp dport { 53, 62201 }")),
			want: Warning, says: []string{"knock_ports", "remove udp/62201 from table inet filter, chain input, rule handle"}},
		{name: "knock port let through where others are rejected", spoil: func(s *scene) {
			withRules("table inet filter { chain input { type filter hook input priority 0; ct state established accept; tcp " +
				"dport 22 accept; udp dport 62201 accept; meta l4proto udp reject; drop; }\n}")(s)
		}, want: Warning, says: []string{"knock_ports", "lets udp/62201 through"}},
		{name: "knock port let through by ufw", spoil: ufw("-A ufw-user-input -p udp --dport 62201 -j ACCEPT\n"),
			want: Warning, says: []string{"knock_ports", "ufw delete allow 62201/udp"}},
		{name: "knock port let through by firewalld", spoil: func(s *scene) {
			withRules("table inet firewalld { chain filter_IN_public_allow { tcp dport 22 accept; udp dport 62201 accept; " +
				"}\nchain filter_IN_public { jump filter_IN_public_allow\nreject with icmpx admin-prohibited\n}\nchain " +
				"filter_INPUT { type filter hook input priority 10; ct state established accept; iifname lo accept; goto " +
				"filter_IN_public; }\n}")(s)
		}, want: Warning, says: []string{"knock_ports", "firewall-cmd --zone=public --remove-port=62201/udp"}},
		{name: "knock port dropped by ufw", spoil: ufw("")},
		{name: "knock port among a range that passes", spoil: beside(also("udp dport 60000-65000"))},
		{name: "knock port let through for some", spoil: beside(also("ip saddr 203.0.113.0/24 udp dport 62201"))},
		{name: "shared knock port let through",
			config: func(c *config.Config) { c.KnockPorts = []config.KnockPort{{Port: 443, Shared: true}} },
			spoil: func(s *scene) {
				beside(also("udp dport 443"))(s)
				s.listenUDP("0.0.0.0:443")
			}},
		{name: "knock port let through by a chain of another table",
			spoil: beside(also("udp dport 62201") + "table inet t { chain c { type filter hook input priority 10; udp " +
				"dport != 123 drop; }\n}\n")},
	}
}

// addressTests are about services at other addresses than this host's.
func addressTests() []hostTest {
	at := func(addresses ...string) func(*config.Config) {
		return func(c *config.Config) {
			for _, a := range addresses {
				c.Services[0].Addresses = append(c.Services[0].Addresses, netip.MustParseAddr(a))
			}
		}
	}
	forwarding := func(policy, rules string) func(*scene) {
		return beside("table inet f { chain c { type filter hook forward priority 0; policy " + policy + ";\n" + rules +
			"\n}\n}\n")
	}
	return []hostTest{
		{name: "shut here to everyone", config: at("198.51.100.5"), want: Notice, says: []string{"service.ssh",
			"listens on tcp/22 of this host: there the guard shuts the port to everyone", `ports = ["tcp/22"]`}},
		{name: "opened here by another service",
			config: func(c *config.Config) { at("198.51.100.5")(c); services("tcp/22")(c) }},
		{name: "at an address of this host", config: at("192.0.2.1")},
		{name: "at another address of this host", config: func(c *config.Config) {
			services("tcp/80")(c)
			c.Services[1].Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
		}, spoil: func(s *scene) {
			beside(also("tcp dport 80"))(s)
			s.hold("web", "192.0.2.1:80")
		}, want: Notice, says: []string{"service.s80", "web listens on tcp/80 of this host"}},
		{name: "nothing listens here", config: behind},
		{name: "listens on loopback only", config: behind, spoil: func(s *scene) { s.hold("web", "127.0.0.1:23") }},
		{name: "dropped on the way", config: behind, spoil: forwarding("drop", "ip daddr 198.51.100.6 accept"),
			want: Problem, says: []string{"table inet f, chain c, policy drop",
				"drops new connections to tcp/23 at 198.51.100.5",
				"nft insert rule inet f c ip daddr 198.51.100.5 tcp dport 23 accept"}},
		{name: "let through on the way", config: behind,
			spoil: forwarding("drop", "ip daddr 198.51.100.5 tcp dport 23 accept")},
	}
}

// bridgeTests are about bridges to machines of services.
func bridgeTests() []hostTest {
	bridged := func(ports int, sysctls ...string) func(*scene) {
		return func(s *scene) {
			s.t.Helper()
			err := lab.Link(s.on, "p1", s.on, "p2")
			err = errors.Join(err, s.on.Bridge("br0", []string{"p1", "p2"}[:ports]...), s.on.AddAddr("br0", "198.51.100.1/24"))
			for _, name := range []string{"call-iptables", "call-ip6tables", "filter-vlan-tagged"} {
				value := map[bool]string{true: "1", false: "0"}[slices.Contains(sysctls, name)]
				if failed := s.on.Sysctl("net.bridge.bridge-nf-"+name, value); errors.Is(failed, os.ErrNotExist) {
					lab.KernelLacks(s.t, "br_netfilter (modprobe br_netfilter)")
				} else {
					err = errors.Join(err, failed)
				}
			}
			lab.Must(s.t, err)
		}
	}
	return []hostTest{
		{name: "not seen", config: behind, spoil: bridged(2, "filter-vlan-tagged"),
			want: Warning, says: []string{"service.s23.addresses", "198.51.100.5 is behind the bridge br0", "without a knock",
				"sysctl -w net.bridge.bridge-nf-call-iptables=1"}},
		{name: "tagged ones not seen", config: behind, spoil: bridged(2, "call-iptables"),
			want: Warning, says: []string{"service.s23.addresses", "VLAN or priority tag",
				"sysctl -w net.bridge.bridge-nf-filter-vlan-tagged=1"}},
		{name: "seen", config: behind, spoil: bridged(2, "call-iptables", "filter-vlan-tagged")},
		{name: "seen, by the bridge's own setting", config: behind, spoil: func(s *scene) {
			bridged(2, "filter-vlan-tagged")(s)
			s.tell("ip", "link", "set", "br0", "type", "bridge", "nf_call_iptables", "1")
		}},
		{name: "no br_netfilter", config: behind, spoil: bridged(2), pretend: func(h *host) { h.bridging = bridging{} },
			want: Warning, says: []string{"modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1"}},
		{name: "a bridge with one port", config: behind, spoil: bridged(1)},
		{name: "another machine", config: behind, spoil: func(s *scene) {
			bridged(2)(s)
			lab.Must(s.t, errors.Join(s.on.DelAddr("br0", "198.51.100.1/24"), s.on.Route("default", "192.0.2.2")))
		}},
		{name: "no machine", spoil: bridged(2)},
	}
}

// TestBridgeFamilies: a bridge's setting for one family does not affect the other.
func TestBridgeFamilies(t *testing.T) {
	bridge := &survey.Bridge{Ports: 2, Calls4: true}
	b := bridging{loaded: true}
	if text, sysctl := b.misses(*bridge, true); !strings.Contains(text, "VLAN") ||
		sysctl != "net.bridge.bridge-nf-filter-vlan-tagged" {
		t.Errorf("IPv4: got %q and %q", text, sysctl)
	}
	if _, sysctl := b.misses(*bridge, false); sysctl != "net.bridge.bridge-nf-call-ip6tables" {
		t.Errorf("IPv6: got %q", sysctl)
	}
}

// TestWays: each other way to a service is reported, and nothing else.
func TestWays(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	for name, tests := range map[string][]hostTest{"beside": besideTests(), "units": unitTests(),
		"knock": knockTests(), "addresses": addressTests(), "bridges": bridgeTests()} {
		for _, test := range tests {
			t.Run(name+"/"+test.name, test.run)
		}
	}
}
