package check

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/setup"
)

func listenTCP(addr string) (*os.File, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

func pid(cmd *exec.Cmd) string { return strconv.Itoa(cmd.Process.Pid) }

// write writes a file of the gateway.
func (s *scene) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	lab.Must(s.t, os.WriteFile(s.path(name), []byte(text), mode))
	s.chmod(name, mode)
}

// saveSettings does what an earlier server did.
func (s *scene) saveSettings() {
	s.t.Helper()
	c, err := config.Load(s.path(""))
	if err == nil {
		err = setup.SaveSettings(c, now)
	}
	lab.Must(s.t, err)
}

func (s *scene) link(to, name string) {
	s.t.Helper()
	lab.Must(s.t, os.Symlink(to, s.path(name)))
}

func (s *scene) chmod(name string, mode os.FileMode) {
	s.t.Helper()
	lab.Must(s.t, os.Chmod(s.path(name), mode))
}

// withRules loads rules in place of dropping's, with the guard.
func withRules(rules string) func(*scene) {
	return func(s *scene) { s.t.Helper(); s.nft(rules + "\ntable inet spa { chain guard { }\n}\n") }
}

// beside loads rules beside dropping's.
func beside(rules string) func(*scene) {
	return func(s *scene) { s.t.Helper(); s.feed(rules, "nft", "-f", "-") }
}

// local makes the addresses of a prefix the gateway's own without adding them to an interface.
func local(prefix string) func(*scene) {
	return func(s *scene) {
		s.t.Helper()
		lab.Must(s.t, s.on.Local(prefix))
	}
}

// marking marks packets of the host, and adds a routing rule that matches the mark.
func marking(mark string, rule ...string) func(*scene) {
	return func(s *scene) {
		s.t.Helper()
		beside("table inet marks { chain restore { type route hook output priority mangle; meta mark set " + mark +
			"; }\n}\n")(s)
		s.tell("ip", slices.Concat([]string{"rule", "add", "priority", "100"}, rule, []string{"lookup", "200"})...)
	}
}

// alsoNamed gives the gateway's interface an alternative name.
func alsoNamed(name string) func(*scene) {
	return func(s *scene) {
		s.t.Helper()
		lab.Must(s.t, s.on.Do(func() error {
			link, err := netlink.LinkByName("vs")
			if err != nil {
				return err
			}
			return netlink.LinkAddAltName(link, name)
		}))
	}
}

func services(list ...string) func(*config.Config) {
	return func(c *config.Config) {
		for _, text := range list {
			p, err := service.ParsePorts(text)
			if err != nil {
				panic(err)
			}
			c.Services = append(c.Services, config.NewService("s"+strconv.Itoa(int(p.Low)), p))
		}
	}
}

func hostTests() []hostTest {
	return slices.Concat(tableTests(), redirectTests(), socketTests(), machineTests, flushTests(), fileTests())
}

// tableTests are about other tools' rule sets.
func tableTests() []hostTest {
	return []hostTest{
		{name: "quiet"},
		{name: "dropped", spoil: withRules("table inet filter { chain input { type filter hook input " +
			"priority 0; policy drop; }\n}"),
			want: Problem, says: []string{"table inet filter, chain input, policy drop", "tcp/22", "cannot open",
				"nft insert rule inet filter input tcp dport 22 accept"}},
		{name: "dropped over IPv6", spoil: withRules("table ip6 filter { chain input { type filter hook input priority 0; " +
			"policy drop; }\n}\ntable ip t { chain c { type filter hook input priority 0; policy drop; " +
			"tcp dport 22 accept; }\n}"),
			want: Problem, says: []string{"table ip6 filter"}},
		{name: "one of two", config: services("udp/61000-61010"),
			spoil: withRules("table inet filter { chain input { type filter hook input priority 0; policy drop; tcp dport 22 " +
				"accept; udp dport 61000-61004 accept; }\n}"),
			want: Problem, says: []string{"connections to udp/61005-61010:", "udp dport 61005-61010 accept"}},
		{name: "by ufw", spoil: func(s *scene) {
			s.feed("*filter\n:INPUT DROP\n:ufw-before-input -\n-A INPUT -j ufw-before-input\n-A ufw-before-input -i lo -j "+
				"ACCEPT\nCOMMIT\n", "iptables-nft-restore")
		}, want: Problem, says: []string{"ufw allow 22/tcp"}},
		{name: "by ufw, led on", config: services("tcp/2200-2201"), spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 2200-2201 accept", "nft", "-f", "-")
			s.feed("table ip t { chain pre { type nat hook prerouting priority -100; tcp dport 2200-2201 dnat to "+
				"192.0.2.2:22; }\n}", "nft", "-f", "-")
			s.feed("*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:ufw-before-input -\n-A INPUT -j ufw-before-input\nCOMMIT\n",
				"iptables-nft-restore")
		}, want: Problem, says: []string{"tcp/2200-2201 to 192.0.2.2:22", " ufw route allow proto tcp to 192.0.2.2 port 22"}},
	}
}

// redirectTests are about redirected ports, and other tools' rules in general.
func redirectTests() []hostTest {
	return []hostTest{
		{name: "led to another port", config: services("tcp/2200"),
			spoil: withRules("table inet filter { chain input { type filter hook input priority 0; policy drop; " +
				"tcp dport 22 accept; }\n" +
				"chain pre { type nat hook prerouting priority -100; tcp dport 2200 redirect to :5000; }\n}"),
			want: Problem, says: []string{"tcp dport 5000 accept"}},
		{name: "perhaps", spoil: beside("table inet t { chain c { type filter hook input priority 0; meta length > 1000 " +
			"tcp dport 22 drop; }\n}"),
			want: Notice, says: []string{"table inet t, chain c, rule handle", "may drop"}},
		{name: "certain sources", spoil: withRules("table inet filter { chain input { type filter hook input priority 0; " +
			"policy drop; ip saddr 198.51.100.0/24 accept; ip6 saddr 2001:db8:2::/64 accept; }\n}"),
			want: Notice, says: []string{"except from certain addresses"}},
		{name: "blocked sources", spoil: beside("table inet t { set s { type ipv4_addr; elements = { 198.51.100.7 } " +
			"}\nchain c { type filter hook input priority 0; ip saddr @s drop; }\n}")},
		{name: "untracked", spoil: beside("table inet t { chain c { type filter hook prerouting priority -300; tcp " +
			"dport 22 notrack; }\n}"),
			want: Notice, says: []string{"table inet t, chain c", "untracked", "tcp/22"}},
		{name: "trusted interface dropped", config: func(c *config.Config) { c.Capture.Interfaces = []string{"vs"} },
			spoil: beside("table inet t { chain c { type filter hook input priority 0; iifname != vs drop; }\n}")},
		{name: "knocks dropped", spoil: beside("table netdev t { chain c { type filter hook ingress device vs priority 0; " +
			"udp dport 62201 drop; }\n}"),
			want: Problem, says: []string{"knock_ports", "table netdev t", "udp/62201", "before a knock can be seen"}},
		{name: "answers", spoil: withRules(""), want: Notice, says: []string{"firewall.closed", `closed = "reject"`}},
		{name: "answers with resets", spoil: beside("table inet t { chain c { type filter hook input priority -1; tcp " +
			"dport != 22 reject with tcp reset; }\n}"),
			want: Notice, says: []string{`closed = "reject"`}},
		{name: "answers, and rejects", config: func(c *config.Config) { c.Firewall.Closed = "reject" }, spoil: withRules("")},
		{name: "silent, and rejects", config: func(c *config.Config) { c.Firewall.Closed = "reject" }, want: Notice,
			says: []string{`closed = "drop"`}},
		{name: "admit", config: admitting, spoil: withRules(admitTable(admits4 + admits6))},
		{name: "admit, by a policy alone", config: admitting,
			spoil: withRules(strings.ReplaceAll(admitTable(admits4+admits6), "\ndrop\n", "\n")),
			want:  Warning, says: []string{"firewall.mode", "tcp/22", "by a policy alone", "chain input, policy drop",
				"nft add rule inet filter input drop"}},
		{name: "admit, open", config: admitting, spoil: withRules(admitTable(admits4 + admits6 + "tcp dport 22 accept")),
			want: Problem, says: []string{"firewall.mode", "tcp/22 is open to strangers"}},
		{name: "admit, nobody", config: admitting, spoil: withRules(admitTable(admits4)),
			want: Problem, says: []string{"firewall.admit", "over IPv6", "spa6",
				"ip6 saddr . meta l4proto . th dport @spa6 accept"}},
	}
}

// socketTests are about listeners.
func socketTests() []hostTest {
	return []hostTest{
		{name: "unguarded sshd", spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 2222 accept", "nft", "-f", "-")
			s.hold("sshd", "0.0.0.0:2222")
		}, want: Warning, says: []string{"tcp/2222", "sshd listens at", "ports of a service"}},
		{name: "unguarded sshd at an address that only a local route has", spoil: func(s *scene) {
			local("198.51.100.0/24")(s)
			s.feed("add rule inet filter input tcp dport 2222 accept", "nft", "-f", "-")
			s.hold("sshd", "198.51.100.7:2222")
		}, want: Warning, says: []string{"tcp/2222", "sshd listens at 198.51.100.7:2222"}},
		{name: "sshd behind the firewall", spoil: func(s *scene) { s.hold("sshd", "0.0.0.0:2222") }},
		{name: "sshd on loopback", spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 2222 accept", "nft", "-f", "-")
			s.hold("sshd", "127.0.0.1:2222")
		}},
		{name: "sshd on loopback, rules not known", spoil: func(s *scene) { s.hold("sshd", "127.0.0.1:2222") },
			pretend: func(h *host) { h.rules = nil }},
		{name: "unguarded sshd, rules not known", spoil: func(s *scene) { s.hold("sshd", "0.0.0.0:2222") },
			pretend: func(h *host) { h.rules = nil },
			want:    Warning, says: []string{"tcp/2222"}},
		{name: "guarded sshd", config: services("tcp/2222"), spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 2222 accept", "nft", "-f", "-")
			s.hold("sshd", "192.0.2.1:2222")
		}},
		{name: "unguarded sshd by systemd", spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 2222 accept", "nft", "-f", "-")
			s.file("usr/lib/systemd/system/ssh.socket", "[Socket]\nListenStream=22\n")
			s.file("run/systemd/generator/ssh.socket.d/addresses.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:2222\n")
			s.hold("systemd", "0.0.0.0:2222")
		}, want: Warning, says: []string{"tcp/2222", "ssh.socket"}},
		{name: "another socket of systemd", spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 9090 accept", "nft", "-f", "-")
			s.hold("systemd", "0.0.0.0:9090")
		}},
		{name: "nothing served", config: services("tcp/80"),
			spoil: func(s *scene) { s.feed("add rule inet filter input tcp dport 80 accept", "nft", "-f", "-") },
			want:  Notice, says: []string{"service.s80", "nothing on this host listens on tcp/80"}},
		{name: "served on loopback", config: services("tcp/80"), spoil: func(s *scene) {
			s.feed("add rule inet filter input tcp dport 80 accept", "nft", "-f", "-")
			s.listen("127.0.0.1:80")
		}, want: Notice, says: []string{"service.s80", "except on loopback"}},
		{name: "served by DNAT", config: services("tcp/80"),
			spoil: beside("table ip nat { chain pre { type nat hook prerouting priority -100; tcp dport 80 redirect to :22; " +
				"}\n}\nadd rule inet filter input tcp dport 80 accept")},
		{name: "knock port in use", spoil: func(s *scene) { s.listenUDP("0.0.0.0:62201") },
			want: Warning, says: []string{"knock_ports", "udp/62201", "shared = true"}},
		{name: "knock port in use on loopback", spoil: func(s *scene) { s.listenUDP("127.0.0.1:62201") }},
		{name: "shared with nobody",
			config: func(c *config.Config) { c.KnockPorts = []config.KnockPort{{Port: 62201, Shared: true}} },
			want:   Notice, says: []string{"knock_ports", "nothing on this host serves it"}},
	}
}

// machineTests are about interfaces, clock, units and the like.
var machineTests = []hostTest{
	{name: "no such interface", config: func(c *config.Config) { c.Capture.Interfaces = []string{"vs", "wan0"} },
		want: Notice, says: []string{"capture.interfaces", "wan0"}},
	{name: "an alternative name", config: func(c *config.Config) { c.Capture.Interfaces = []string{"enp0s5"} },
		spoil: alsoNamed("enp0s5")},
	{name: "elsewhere", config: func(c *config.Config) { c.Address = "198.51.100.9" }, want: Notice,
		says: []string{"address", "198.51.100.9 is not an address of this host"}},
	{name: "an address that only a local route has", config: func(c *config.Config) { c.Address = "198.51.100.7" },
		spoil: local("198.51.100.0/24")},
	{name: "a name that leads elsewhere", config: func(c *config.Config) { c.Address = "gw.example.net" },
		pretend: func(h *host) {
			h.resolve = func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("198.51.100.9")}, nil
			}
		}, want: Notice, says: []string{"address", "gw.example.net is [198.51.100.9], which is not " +
			"an address of this host"}},
	{name: "another port", config: func(c *config.Config) { c.Address += ":5555" }, want: Notice,
		says: []string{"address", "udp/5555", "knock_ports"}},
	{name: "the same port", config: func(c *config.Config) { c.Address += ":62201" }},
	{name: "not to be looked up", config: func(c *config.Config) { c.Address = "gw.example.net" }, want: Notice,
		says: []string{"address", "gw.example.net", "no such host"}},
	{name: "no user", pretend: func(h *host) { h.accounts = func(string) (int, int, bool) { return 0, 0, false } },
		want: Notice, says: []string{"user spa", "useradd"}},
	{name: "no user, and a unit for it",
		spoil:   func(s *scene) { s.file("etc/systemd/system/spa-server.service", "[Service]\nUser=spa\n") },
		pretend: func(h *host) { h.accounts = func(string) (int, int, bool) { return 0, 0, false } },
		want:    Problem, says: []string{"user spa", "useradd", "it does not start"}},
	{name: "clock on its own", pretend: func(h *host) { h.clock.synced = false }, want: Notice,
		says: []string{"clock", "timedatectl set-ntp true"}},
	{name: "clock far off", pretend: func(h *host) { h.clock.within = 20 * time.Second }, want: Notice,
		says: []string{"clock", "20s"}},
	{name: "conntrack full", pretend: func(h *host) { h.conntrack = conntrack{count: 900, max: 1000} }, want: Notice,
		says: []string{"900 of 1000", "nf_conntrack_max=4000"}},
	{name: "conntrack fine", pretend: func(h *host) { h.conntrack = conntrack{count: 700, max: 1000} }},
	{name: "cookies always", pretend: func(h *host) { h.around.cookies = 2 }, want: Warning,
		says: []string{"tcp_syncookies", "without a SYN", "sysctl -w net.ipv4.tcp_syncookies=1"}},
	{name: "cookies in a flood", pretend: func(h *host) { h.around.cookies = 1 }},
	{name: "cookies beside a guard that is none", config: func(c *config.Config) { c.Firewall.Backend = "dry-run" },
		spoil: func(s *scene) { s.nft(dropping) }, pretend: func(h *host) { h.around.cookies = 2 }},
	{name: "virtual servers", pretend: func(h *host) { h.around.ipvs = true }, want: Notice,
		says: []string{"ip_vs", "passes the guard", "ipvsadm -Ln"}},
	{name: "tunnels over UDP", pretend: func(h *host) { h.around.fou = true }, want: Notice,
		says: []string{"fou", "passes the guard", "ip fou show"}},
	{name: "sessions forgotten", pretend: func(h *host) { h.conntrack.established = 10 * time.Minute }, want: Notice,
		says: []string{"nf_conntrack_tcp_timeout_established", "10m0s", "until its client knocks again",
			"sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=432000"}},
	{name: "sessions remembered for long enough", pretend: func(h *host) { h.conntrack.established = 2 * time.Hour }},
	{name: "sessions forgotten that end with their grant",
		config:  func(c *config.Config) { c.Services[0].OnExpiry = "cut" },
		pretend: func(h *host) { h.conntrack.established = time.Minute }},
	{name: "marks spoiled", spoil: marking("ct mark", "fwmark", "2"), want: Problem,
		says: []string{"ip rule fwmark 0x2", "table inet marks, chain restore", "0x20000000",
			"ip rule add priority 100 fwmark 0x2/0xdfffffff lookup 200 && ip rule del priority 100 fwmark 0x2"}},
	{name: "marks of a rule with more to it", spoil: marking("ct mark", "iif", "vs", "fwmark", "2"), want: Problem,
		says: []string{"in the rule of priority 100 write fwmark 0x2/0xdfffffff"}},
	{name: "marks with a mask", spoil: marking("ct mark", "fwmark", "2/0xff")},
	{name: "marks restored with a mask", spoil: marking("ct mark & 0xff", "fwmark", "2")},
	{name: "marks that are not restored", spoil: marking("2", "fwmark", "2")},
	{name: "marks spoiled by iptables", spoil: func(s *scene) {
		s.feed("*mangle\n-A OUTPUT -j CONNMARK --restore-mark\nCOMMIT\n", "iptables-nft-restore")
		s.tell("ip", "rule", "add", "priority", "100", "fwmark", "2", "lookup", "200")
	}, want: Problem, says: []string{"CONNMARK --restore-mark"}},
	{name: "marks restored by iptables with a mask", spoil: func(s *scene) {
		s.feed("*mangle\n-A OUTPUT -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff\nCOMMIT\n", "iptables-nft-restore")
		s.tell("ip", "rule", "add", "priority", "100", "fwmark", "2", "lookup", "200")
	}},
	{name: "ports of the host's own", config: services("udp/32000-33000"), spoil: beside(also("udp dport 32000-33000")),
		want: Warning,
		says: []string{"service.s32000.ports", "udp/32768-33000", "sysctl -w net.ipv4.ip_local_reserved_ports=32768-33000"}},
	{name: "some of them reserved", config: services("udp/32000-33000"), spoil: beside(also("udp dport 32000-33000")),
		pretend: func(h *host) {
			h.own.reserved, h.own.text = []service.Ports{{Low: 32700, High: 32900}, {Low: 40000, High: 40000}},
				"32700-32900,40000"
		}, want: Warning, says: []string{"udp/32901-33000", "ip_local_reserved_ports=32700-32900,40000,32901-33000"}},
	{name: "all of them reserved", config: services("udp/32000-33000"), spoil: beside(also("udp dport 32000-33000")),
		pretend: func(h *host) {
			h.own.reserved = []service.Ports{{Low: 32768, High: 33000}}
		}},
	{name: "TCP ports of the host's own", config: services("tcp/32000-33000"),
		spoil: beside(also("tcp dport 32000-33000"))},
	{name: "a knock port of the host's own",
		config: func(c *config.Config) { c.KnockPorts = []config.KnockPort{{Port: 40000}} },
		want:   Notice, says: []string{"knock_ports", "udp/40000", "ip_local_reserved_ports=40000-40000"}},
	{name: "in memory", pretend: func(h *host) { h.medium = func(string) medium { return inMemory } }, want: Notice,
		says: []string{"state", "reboot"}},
	{name: "on a network", pretend: func(h *host) { h.medium = func(string) medium { return onNetwork } }, want: Notice,
		says: []string{"state", "network file system"}},
	{name: "not root", pretend: func(h *host) {
		h.uid, h.rules.Links = 1000, nil
		h.notSeen("the rule sets of other tools", os.ErrPermission)
		h.rules = nil
	}, want: Notice, says: []string{"not inspected", "the rule sets of other tools", "root"}},
	{name: "no guard", spoil: func(s *scene) { s.nft(dropping) }, want: Problem,
		says: []string{"guard", "NOT LOADED", "systemctl restart"}},
	{name: "neither guard nor server", spoil: func(s *scene) { s.nft(dropping); s.saveSettings() },
		pretend: func(h *host) { h.running = false },
		want:    Problem, says: []string{"guard", "NOT LOADED", "no server is running"}},
	{name: "never loaded", spoil: func(s *scene) { s.nft(dropping) }, pretend: func(h *host) { h.running = false },
		want: Warning, says: []string{"guard", "not loaded yet"}},
	{name: "guard without server", pretend: func(h *host) { h.running = false }, want: Problem,
		says: []string{"spa-server", "no client can knock"}},
	{name: "guard by iptables", spoil: func(s *scene) {
		s.nft(dropping)
		s.feed("*mangle\n:spa-guard -\n-A PREROUTING -j spa-guard\nCOMMIT\n", "iptables-nft-restore")
	}},
	{name: "open at boot",
		spoil: func(s *scene) { s.remove("etc/systemd/system/multi-user.target.wants/spa-guard.service") }, want: Warning,
		says: []string{"spa-guard.service", "systemctl enable"}},
	{name: "no server at boot",
		spoil: func(s *scene) { s.remove("etc/systemd/system/multi-user.target.wants/spa-server.service") }, want: Warning,
		says: []string{"spa-server.service", "systemctl enable"}},
	{name: "no systemd", spoil: func(s *scene) {
		s.remove("etc/systemd/system/multi-user.target.wants/spa-guard.service")
		s.remove("run/systemd/system")
	}},
}

// flushTests are about units and files that flush rule sets.
func flushTests() []hostTest {
	flushing := func(s *scene) {
		s.enable("nftables.service")
		s.file("etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\ninclude \"/etc/nftables.d/*.nft\"\n")
	}
	included := func(s *scene) { flushing(s); s.file("etc/nftables.d/spa.nft", "table inet spa {\n}\n") }
	inFile := func(c *config.Config) { c.Firewall.Persist = "file" }
	return []hostTest{
		{name: "flushed", spoil: flushing, want: Warning, says: []string{"nftables.service", "dead", "guard --print"}},
		{name: "flushed, as Fedora has it", config: inFile, spoil: func(s *scene) {
			s.enable("nftables.service")
			s.file("etc/sysconfig/nftables.conf", "table inet spa {\n}\n")
		}},
		{name: "flushed, not enabled", spoil: func(s *scene) { s.file("etc/nftables.conf", "flush ruleset\n") }},
		{name: "flushed, kept by the kernel", spoil: flushing, pretend: func(h *host) { h.rules = nil }},
		{name: "flushed, kept by the file", config: inFile, spoil: included},
		{name: "kept by another's file", config: inFile, spoil: func(s *scene) {
			flushing(s)
			s.file("etc/nftables.d/x.nft",
				"table inet spare {\n}\n")
		}, want: Warning, says: []string{"no table inet spa"}},
		{name: "a kernel without owners", pretend: func(h *host) { h.persists = false },
			want: Warning, says: []string{"firewall.persist", "6.9", "a dead server starts again",
				"guard --print", "/etc/nftables.conf"}},
		{name: "a kernel without owners, kept by a file", config: inFile, spoil: included,
			pretend: func(h *host) { h.persists = false }},
		{name: "kept by no file", config: inFile, spoil: flushing, want: Warning,
			says: []string{"firewall.persist", "no table inet spa"}},
		{name: "kept twice", spoil: included, want: Problem, says: []string{"firewall.persist", "refuses"}},
		{name: "iptables flushed", config: func(c *config.Config) { c.Firewall.Backend = "iptables" },
			spoil: func(s *scene) { s.enable("netfilter-persistent.service") },
			want:  Warning, says: []string{"netfilter-persistent.service", "spa-server guard"}},
		{name: "iptables flushed, guard by nftables", spoil: func(s *scene) {
			s.enable("netfilter-persistent.service")
			s.enable("firewalld.service")
			s.enable("ufw.service")
		}},
	}
}

// fileTests are about the gateway's own files.
func fileTests() []hostTest {
	return []hostTest{
		{name: "world-writable: server.toml", spoil: func(s *scene) { s.chmod("server.toml", 0o642) }, want: Warning,
			says: []string{"server.toml", "chmod o-w"}},
		{name: "world-writable: the directory", spoil: func(s *scene) { s.chmod(".", 0o757) }, want: Warning,
			says: []string{"0757", "chmod o-w"}},
		{name: "world-writable: clients", spoil: func(s *scene) { s.chmod("clients", 0o757) }, want: Warning,
			says: []string{"clients", "chmod o-w"}},
		{name: "world-readable: the journal", spoil: func(s *scene) { s.chmod("journal", 0o604) }, want: Warning,
			says: []string{"journal", "chmod o-rwx"}},
		{name: "world-readable: the ledger", spoil: func(s *scene) { s.write("grants", "", 0o604) }, want: Warning,
			says: []string{"grants", "chmod o-rwx"}},
		{name: "world-readable: the log", spoil: func(s *scene) { s.write("audit.jsonl", "", 0o644) }, want: Warning,
			says: []string{"audit.jsonl", "chmod o-rwx"}},
		// chmod would change what the link leads to.
		{name: "a link in place of the ledger", spoil: func(s *scene) { s.link("server.toml", "grants") }},
		{name: "world-writable: the socket", spoil: func(s *scene) { s.write("control.sock", "", 0o606) }, want: Warning,
			says: []string{"control.sock", "chmod o-rwx"}},
		{name: "another's journal", spoil: func(s *scene) { s.chown("journal", 54321) }, want: Problem,
			says: []string{"journal", "54321", "chown -h "}},
		{name: "the server's journal", spoil: func(s *scene) { s.chown("journal", 64123) }},
		{name: "a copy of a key", spoil: func(s *scene) { s.write("clients/alice.toml~", "", 0o600) }, want: Notice,
			says: []string{"alice.toml~", "shred -u"}},
		{name: "an editor's copy", spoil: func(s *scene) { s.write("clients/.alice.toml.swp", "", 0o600) }, want: Notice,
			says: []string{".alice.toml.swp"}},
		{name: "a world-readable copy", spoil: func(s *scene) { s.write("gate.key.bak", "", 0o644) }, want: Warning,
			says: []string{"gate.key.bak", "0644", "may have read it"}},
		{name: "a copy of no secret", spoil: func(s *scene) { s.write("server.toml.bak", "", 0o644) }},
		{name: "a token", spoil: func(s *scene) { s.write("alice.token", s.token(), 0o600) }, want: Notice,
			says: []string{"alice.token", "can knock"}},
		{name: "another file", spoil: func(s *scene) { s.write("notes", "spa1 is not a token\n", 0o644) }},
	}
}

// token is an enrolment token.
func (s *scene) token() string {
	s.t.Helper()
	p := &keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201}, ServerID: keys.NewServerID(),
		Gate: keys.NewGateKey(), ID: keys.NewID(), Key: keys.NewKey(), Client: "alice",
		Services: map[string][]string{"ssh": {"tcp/22"}}, Receipts: true}
	return p.Token() + "\n"
}

func (s *scene) listenUDP(addr string) {
	s.t.Helper()
	var conn net.PacketConn
	lab.Must(s.t, s.on.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", addr)
		return err
	}))
	s.t.Cleanup(func() { conn.Close() })
}

func (s *scene) remove(name string) {
	s.t.Helper()
	lab.Must(s.t, os.RemoveAll(s.root+"/"+name))
}

func (s *scene) chown(name string, uid int) {
	s.t.Helper()
	lab.NeedRoot(s.t)
	lab.Must(s.t, os.Chown(s.path(name), uid, 0))
}
