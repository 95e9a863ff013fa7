package check

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// leading returns an nft table that redirects ports before routing.
func leading(rules string) string {
	return "table ip nat { chain pre { type nat hook prerouting priority -100;\n" + rules + "\n}\n}\n"
}

func handed(rules string) string {
	return "table inet tp { chain pre { type filter hook prerouting priority -150;\n" + rules + "\n}\n}\n"
}

// passing allows packets that TPROXY assigns to sockets.
func passing(c *config.Config) { c.Firewall.TPROXY = true }

// behind adds a service on another machine.
func behind(c *config.Config) {
	services("tcp/23")(c)
	c.Services[1].Addresses = []netip.Addr{netip.MustParseAddr("198.51.100.5")}
}

// also opens a port beside those of dropping.
func also(port string) string {
	return "add rule inet filter input " + port + " accept\n"
}

// detourTests are about ports that lead to a guarded service under another number.
func detourTests() []hostTest { return slices.Concat(ledTests, publishedTests(), handedTests) }

// ledTests are about redirection and DNAT of another port to a guarded one.
var ledTests = []hostTest{
	{name: "redirected to ssh", spoil: beside(leading("tcp dport 2222 redirect to :22")),
		want: Warning, says: []string{"tcp/2222 table ip nat, chain pre, rule handle", "leads it to the guarded tcp/22",
			"to everyone without a grant for tcp/22", "nft delete rule ip nat pre handle", `ports = ["tcp/2222"]`}},
	{name: "redirected to ssh, dropped there", spoil: func(s *scene) {
		s.nft("table inet filter { chain input { type filter hook input priority 0; policy drop; iif lo accept; ct status " +
			"dnat drop; tcp dport 22 accept; }\n}\ntable inet spa { chain guard { }\n}\n" +
			leading("tcp dport 2222 redirect to :22"))
	}},
	{name: "redirected to ssh over IPv6 too", spoil: beside("table inet nat { chain pre { type nat hook prerouting " +
		"priority -100; tcp dport 2222 redirect to :22; }\n}\n"),
		want: Warning, says: []string{"table inet nat", "leads it to the guarded tcp/22"}},
	{name: "a range redirected to ssh", spoil: beside(leading("tcp dport 2000-2009 redirect to :22")),
		want: Warning, says: []string{"tcp/2000-2009 ", "leads it to the guarded tcp/22", `ports = ["tcp/2000-2009"]`}},
	{name: "redirected to ssh for some", spoil: beside(leading("ip saddr 203.0.113.0/24 tcp dport 2222 redirect to :22")),
		want: Warning, says: []string{"tcp/2222", "leads some of it to the guarded tcp/22"}},
	{name: "redirected to ssh on a trusted interface",
		config: func(c *config.Config) { c.Capture.Interfaces = []string{"vs"} },
		spoil:  beside(leading("iifname != vs tcp dport 2222 redirect to :22"))},
	{name: "redirected by a guarded port", config: services("tcp/2222"),
		spoil: beside(leading("tcp dport 2222 redirect to :22") + also("tcp dport 2222"))},
	{name: "redirected by iptables", spoil: func(s *scene) {
		s.feed("*nat\n-A PREROUTING -p tcp --dport 2222 -j REDIRECT --to-ports 22\nCOMMIT\n", "iptables-nft-restore")
	},
		want: Warning, says: []string{"tcp/2222 iptables table nat, chain PREROUTING", "leads it to the guarded tcp/22",
			"iptables -t nat -D PREROUTING -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22"}},
	{name: "led to ssh on loopback", spoil: beside(leading("tcp dport 2222 dnat to 127.0.0.1:22")), want: Warning,
		says: []string{"tcp/2222", "leads it to the guarded tcp/22"}},
	{name: "led to ssh by a map",
		spoil: beside(leading("meta l4proto tcp dnat ip to tcp dport map { 2222 : 192.0.2.1 . 22, 8080 : " +
			"198.51.100.9 . 80 }")), want: Warning, says: []string{"tcp/2222", "leads it to the guarded tcp/22"}},
	{name: "led to ssh by firewalld", spoil: func(s *scene) {
		s.nft(dropping + "table inet spa { chain guard { }\n}\ntable inet firewalld { chain nat_PRE_public_allow { tcp " +
			"dport 2222 redirect to :22; }\nchain nat_PREROUTING { type nat hook prerouting priority -90; goto " +
			"nat_PRE_public_allow; }\n}\n")
	}, want: Warning,
		says: []string{"tcp/2222", "firewall-cmd --zone=public --remove-forward-port=port=2222:proto=tcp:toport=22"}},
	{name: "what passes through is redirected to ssh",
		spoil: beside(leading("fib daddr type != local tcp dport 2222 redirect to :22")),
		want:  Warning, says: []string{"tcp/2222 to other machines ", "leads it to the guarded tcp/22"}},
	{name: "redirected to what is not guarded", spoil: beside(leading("tcp dport 2222 redirect to :23"))},
	{name: "led to another machine", spoil: beside(leading("tcp dport 2222 dnat to 198.51.100.5:22"))},
	{name: "led to a service behind", config: behind, spoil: beside(leading("tcp dport 2323 dnat to 198.51.100.5:23")),
		want: Warning, says: []string{"tcp/2323", "leads it to the guarded tcp/23 at 198.51.100.5"}},
	{name: "admit, redirected", config: admitting, spoil: withRules(admitTable(admits4+admits6+"ct status dnat accept") +
		leading("tcp dport 2222 redirect to :22")),
		want: Problem, says: []string{"tcp/2222", "leads it to the guarded tcp/22: strangers get in there"}},
	{name: "admit, redirected and shut", config: admitting,
		spoil: withRules(admitTable(admits4+admits6) + leading("tcp dport 2222 redirect to :22"))},
}

// publishedTests are about two ports that lead to one.
func publishedTests() []hostTest {
	web := services("tcp/80")
	return []hostTest{
		{name: "published twice", config: web, spoil: beside(published("{ 80, 8081 }") + also("tcp dport 80")),
			want: Problem, says: []string{"tcp/8081 ", "leads it to 198.51.100.2:80, where the guarded tcp/80 leads too: " +
				"strangers get in there", "nft delete rule ip nat pre handle"}},
		{name: "published twice by Docker", config: services("tcp/8080"), spoil: func(s *scene) {
			s.container()
			s.feed(dockerTwice, "iptables-nft-restore")
			s.feed(also("tcp dport 8080"), "nft", "-f", "-")
		}, want: Problem, says: []string{"tcp/8081 iptables table nat, chain DOCKER",
			"leads it to 198.51.100.2:80, where the guarded tcp/8080 leads too", "docker ps --filter publish=8081/tcp"}},
		{name: "published once", config: web,
			spoil: beside(leading("tcp dport 80 dnat to 198.51.100.2:80\ntcp dport 8081 dnat to 198.51.100.2:81\ntcp dport "+
				"8082 dnat to 198.51.100.3:80") + also("tcp dport 80"))},
		{name: "led to an open port", config: web, spoil: func(s *scene) {
			beside(leading("tcp dport 80 redirect to :8080") + also("tcp dport { 80, 8080 }"))(s)
			s.hold("web", "0.0.0.0:8080")
		}, want: Problem, says: []string{"tcp/8080 table ip nat", "leads the guarded tcp/80 to it: strangers get in there",
			`add "tcp/8080" to the ports of service.s80`}},
		{name: "led to a port that is shut", config: web, spoil: func(s *scene) {
			beside(leading("tcp dport 80 redirect to :8080") + also("tcp dport 80") + also("ct status dnat tcp dport 8080"))(s)
			s.hold("web", "0.0.0.0:8080")
		}},
		{name: "led to a port at which nothing listens", config: web,
			spoil: beside(leading("tcp dport 80 redirect to :8080") + also("tcp dport { 80, 8080 }"))},
	}
}

// handedTests are about TPROXY.
var handedTests = []hostTest{
	{name: "handed to ssh", spoil: beside(handed("tcp dport 3222 tproxy to :22 accept") + also("tcp dport 3222")),
		want: Warning, says: []string{"tcp/3222 table inet tp, chain pre, rule handle",
			"hands it to what listens on tcp/22 (TPROXY): the guard shuts this way", "nft delete rule inet tp pre handle"}},
	{name: "handed to a proxy", spoil: beside(handed("tcp dport 80 tproxy to :3128 accept") +
		also("tcp dport { 80, 3128 }")),
		want: Warning, says: []string{"tcp/80 ", "hands it to what listens on tcp/3128 (TPROXY): the guard shuts this way",
			"tproxy = true"}},
	{name: "let pass, handed to ssh", config: passing,
		spoil: beside(handed("tcp dport 3222 tproxy to :22 accept") + also("tcp dport 3222")),
		want:  Problem, says: []string{"tcp/3222 table inet tp, chain pre, rule handle",
			"hands it to what listens on the guarded tcp/22 (TPROXY)", "strangers get in there",
			"nft delete rule inet tp pre handle"}},
	{name: "let pass, handed to ssh by iptables", config: passing, spoil: func(s *scene) {
		s.feed("*mangle\n-A PREROUTING -p tcp --dport 3222 -j TPROXY --on-port 22 --tproxy-mark 1\nCOMMIT\n",
			"iptables-nft-restore")
		s.feed(also("tcp dport 3222"), "nft", "-f", "-")
	}, want: Problem, says: []string{"tcp/3222", "iptables -t mangle -D PREROUTING -p tcp -m tcp " +
		"--dport 3222 -j TPROXY"}},
	{name: "let pass, handed to ssh from what passes through", config: passing,
		spoil: beside(handed("fib daddr type != local tcp dport 80 tproxy to :22 accept") + also("tcp dport 80")),
		want:  Problem, says: []string{"tcp/80 to other machines ", "hands it to what listens on the guarded tcp/22"}},
	{name: "let pass, handed to ssh, dropped behind", config: passing,
		spoil: beside(handed("tcp dport 3222 tproxy to :22 accept"))},
	{name: "let pass, handed to a proxy", config: passing, spoil: beside(handed("tcp dport 80 tproxy to :3128 accept") +
		also("tcp dport { 80, 3128 }"))},
}

// published redirects ports to the port of a container.
func published(ports string) string {
	return leading("tcp dport " + ports + " dnat to 198.51.100.2:80")
}

// container gives the gateway a container network.
func (s *scene) container() {
	s.t.Helper()
	lab.Must(s.t, errors.Join(lab.Link(s.on, "docker0", s.on, "docker1"),
		s.on.AddAddr("docker0", "198.51.100.1/24")))
}

// dockerTwice is like Docker's rules for a container that publishes its port twice.
const dockerTwice = `*nat
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 198.51.100.0/24 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2:80
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 198.51.100.2:80
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8443 -j DNAT --to-destination 198.51.100.2:443
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 198.51.100.3:80
COMMIT
*filter
:FORWARD DROP
:DOCKER -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A DOCKER -d 198.51.100.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -d 198.51.100.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 443 -j ACCEPT
-A DOCKER -d 198.51.100.3/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
`

// TestOtherPorts: a port that leads to a guarded service is reported, and no other.
func TestOtherPorts(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	for _, test := range detourTests() {
		t.Run(test.name, test.run)
	}
}
