package main

import (
	"strings"

	"sallyport/spa/lab"
)

// docker is a rule set like Docker's, with a container that publishes port 80 as 8080.
type docker struct {
	shell
	load func(d *docker, rules string)
	text string // the rules; %DENY% is the place of the administrator's own
	deny string // a rule that shuts the container's ports
	gone string // removes the rules
}

// newContainer makes the container and its network; the published port does not lead to it yet.
func newContainer(g *gateway) {
	g.t.Helper()
	container := lab.New(g.t, "container")[0]
	for _, err := range []error{
		lab.Link(container, "eth0", g.host, "veth1"),
		g.host.Bridge("docker0", "veth1"),
		g.host.AddAddr("docker0", "198.51.100.1/24"),
		container.AddAddr("eth0", "198.51.100.2/24"),
		container.Route("default", "198.51.100.1"),
		g.host.Route("default", "192.0.2.254"), // strangers are behind vs
		g.host.Forward(),
	} {
		lab.Must(g.t, err)
	}
	_, err := lab.EchoServer(container, ":80")
	lab.Must(g.t, err)
}

func (d *docker) begin()  { d.g.t.Helper(); d.load(d, strings.Replace(d.text, "%DENY%", d.deny, 1)) }
func (d *docker) allow()  { d.g.t.Helper(); d.load(d, strings.Replace(d.text, "%DENY%", "", 1)) }
func (d *docker) reload() { d.g.t.Helper(); d.end(); d.allow() }
func (d *docker) end()    { d.g.t.Helper(); d.load(d, d.gone) }

const dockerIPTables = `*raw
:PREROUTING ACCEPT
-A PREROUTING -d 198.51.100.2/32 ! -i docker0 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 198.51.100.0/24 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2:80
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 198.51.100.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
%DENY%
-A DOCKER-USER -j RETURN
COMMIT
`

const dockerIPTablesGone = `*raw
:PREROUTING ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:FORWARD ACCEPT
COMMIT
`

func newDockerIPTables(g *gateway) tool {
	g.t.Helper()
	newContainer(g)
	return &docker{shell: shell{g: g}, text: dockerIPTables, gone: dockerIPTablesGone,
		deny: "-A DOCKER-USER -i vs -m conntrack --ctstate NEW -j DROP",
		load: func(d *docker, rules string) { d.g.t.Helper(); d.feed(rules, "iptables-restore", "-w", "60") },
	}
}

const dockerNFTables = `table ip docker-bridges
delete table ip docker-bridges
table ip docker-bridges {
	map filter-forward-in-jumps {
		type ifname : verdict
		elements = { "docker0" : jump filter-forward-in__docker0 }
	}
	map filter-forward-out-jumps {
		type ifname : verdict
		elements = { "docker0" : jump filter-forward-out__docker0 }
	}
	chain filter-FORWARD {
		type filter hook forward priority filter; policy drop;
		%DENY%
		oifname vmap @filter-forward-in-jumps
		iifname vmap @filter-forward-out-jumps
	}
	chain nat-PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter jump nat-prerouting-and-output
	}
	chain nat-OUTPUT {
		type nat hook output priority -100; policy accept;
		fib daddr type local counter jump nat-prerouting-and-output
	}
	chain nat-POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		iifname "docker0" oifname != "docker0" ip saddr 198.51.100.0/24 counter masquerade
	}
	chain nat-prerouting-and-output {
		tcp dport 8080 counter dnat to 198.51.100.2:80
	}
	chain raw-PREROUTING {
		type filter hook prerouting priority raw; policy accept;
		ip daddr 198.51.100.2 iifname != "docker0" counter drop
	}
	chain filter-forward-in__docker0 {
		ct state established,related counter accept
		iifname "docker0" counter accept
		ip daddr 198.51.100.2 tcp dport 80 counter accept
		counter drop
	}
	chain filter-forward-out__docker0 {
		ct state established,related counter accept
		counter accept
	}
}
`

func newDockerNFTables(g *gateway) tool {
	g.t.Helper()
	newContainer(g)
	return &docker{shell: shell{g: g}, text: dockerNFTables, gone: "delete table ip docker-bridges\n",
		deny: `iifname "vs" ct state new drop`,
		load: func(d *docker, rules string) { d.g.t.Helper(); d.feed(rules, "nft", "-f", "-") },
	}
}
