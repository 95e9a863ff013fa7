package survey

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// Place is a rule, or the policy of a base chain.
type Place struct {
	Family, Table, Chain string
	Rule                 string // empty: the policy
	Base                 string // the base chain that leads there
	Tool                 Tool
	Program              string // nft, iptables, ip6tables-legacy and so on

	// Where a packet that is dropped there was bound for, if not for the address and port of this host
	// that it was sent to: the address is zero where it stays here, the port where it is the one
	// that it was sent to.
	Bound netip.AddrPort
}

// Tool is what made a table, and has to be told where it is to be otherwise.
type Tool string

// Tools whose tables can be told by the names in them.
const (
	ByHand    Tool = ""
	UFW       Tool = "ufw"
	Firewalld Tool = "firewalld"
	Docker    Tool = "docker"
	Fail2ban  Tool = "fail2ban"
)

func (c *chain) place(r rule, base *chain) Place {
	p := Place{Family: c.table.family, Table: c.table.name, Chain: c.name, Base: base.name,
		Program: c.table.program, Tool: toolOf(c)}
	if r != nil {
		p.Rule = r.String()
	}
	if strings.Contains(p.Rule, "--match-set f2b-") { // its rule stands in INPUT
		p.Tool = Fail2ban
	}
	return p
}

// toolOf tells by names: of the chain first, since tools share the tables of iptables.
func toolOf(c *chain) Tool {
	if t := toolByName(c.name); t != ByHand {
		return t
	}
	if c.table.name == "firewalld" {
		return Firewalld
	}
	if c.table.kind == nftables {
		return toolByName(c.table.name)
	}
	if c.hook == noHook {
		return ByHand
	}
	for _, tool := range []struct {
		chain string
		tool  Tool
	}{{"ufw-before-input", UFW}, {"ufw6-before-input", UFW}, {"INPUT_ZONES", Firewalld}} {
		if c.table.chains[tool.chain] != nil {
			return tool.tool
		}
	}
	return ByHand
}

func toolByName(name string) Tool {
	for prefix, tool := range map[string]Tool{"ufw": UFW, "DOCKER": Docker, "f2b-": Fail2ban} {
		if strings.HasPrefix(name, prefix) {
			return tool
		}
	}
	return ByHand
}

// String says where it is: "table inet filter, chain input, rule handle 7".
func (p Place) String() string {
	what := "policy drop"
	if p.Rule != "" {
		what = "rule " + p.Rule
	}
	table := "table " + p.Family + " " + p.Table
	if p.Program != "nft" {
		table = p.Program + " table " + p.Table
	}
	return fmt.Sprintf("%s, chain %s, %s", table, p.Chain, what)
}

// Allow returns the command that lets ports pass by this place. They are those that a packet is sent
// to: where DNAT has led it on, it passes by another address and port.
func (p Place) Allow(ports service.Ports) string {
	if port := p.Bound.Port(); port != 0 {
		ports.Low, ports.High = port, port
	}
	if p.Bound.Addr().IsValid() {
		return p.allowOn(ports, p.Bound.Addr())
	}
	proto := ports.Proto.String()
	switch p.Tool {
	case UFW:
		return "ufw allow " + numbers(ports, ":") + "/" + proto
	case Firewalld:
		what := p.zone() + "--add-port=" + numbers(ports, "-") + "/" + proto
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	}
	return p.insert(ports, "", "")
}

// allowOn is for packets that leave for another machine.
func (p Place) allowOn(ports service.Ports, to netip.Addr) string {
	proto := ports.Proto.String()
	switch p.Tool {
	case UFW:
		return fmt.Sprintf("ufw route allow proto %s to %v port %s", proto, to, numbers(ports, ":"))
	case Firewalld:
		return fmt.Sprintf("# let a policy of firewalld accept %s port %s to %v (man firewalld.policies)",
			proto, numbers(ports, "-"), to)
	}
	if to.Is4() {
		return p.insert(ports, fmt.Sprintf("ip daddr %v ", to), fmt.Sprintf(" -d %v", to))
	}
	return p.insert(ports, fmt.Sprintf("ip6 daddr %v ", to), fmt.Sprintf(" -d %v", to))
}

// insert puts a rule first, which accepts ports under a condition in the words of nft or of iptables.
func (p Place) insert(ports service.Ports, nft, iptables string) string {
	proto := ports.Proto.String()
	iptables += " -p " + proto + " --dport " + numbers(ports, ":")
	switch p.Tool {
	case Docker:
		return p.Program + " -I DOCKER-USER" + iptables + " -j ACCEPT"
	case Fail2ban:
		return "fail2ban-client banned\n# and unban what is banned by mistake: fail2ban-client unban ADDRESS"
	}
	if p.Program == "nft" {
		return fmt.Sprintf("nft insert rule %s %s %s %s%s dport %s accept\n# and the same in the file that loads this table",
			p.Family, p.Table, p.Base, nft, proto, numbers(ports, "-"))
	}
	table := ""
	if p.Table != "filter" {
		table = " -t " + p.Table
	}
	return fmt.Sprintf("%s%s -I %s%s -j ACCEPT\n# and save it where your rules are kept",
		p.Program, table, p.Base, iptables)
}

// AllowFrom returns the command that lets ports pass by this place for one sender: of what bans
// addresses, the one that lifts the ban.
func (p Place) AllowFrom(from netip.Addr, ports service.Ports) string {
	proto := ports.Proto.String()
	switch p.Tool {
	case UFW:
		return fmt.Sprintf("ufw insert 1 allow proto %s from %s to any port %s", proto, from, numbers(ports, ":"))
	case Firewalld:
		what := fmt.Sprintf(`%s--add-rich-rule='rule priority="-1" family="%s" source address="%s" port `+
			`port="%s" protocol="%s" accept'`,
			p.zone(), map[bool]string{true: "ipv4", false: "ipv6"}[from.Is4()], from, numbers(ports, "-"), proto)
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	case Docker:
		return fmt.Sprintf("%s -I DOCKER-USER -s %s -p %s --dport %s -j ACCEPT", p.Program, from, proto, numbers(ports, ":"))
	case Fail2ban:
		return "fail2ban-client unban " + from.String()
	}
	if p.Program == "nft" {
		return fmt.Sprintf("nft insert rule %s %s %s %s saddr %s %s dport %s accept\n# and the same in the "+
			"file that loads this table",
			p.Family, p.Table, p.Base, map[bool]string{true: "ip", false: "ip6"}[from.Is4()], from, proto, numbers(ports, "-"))
	}
	table := ""
	if p.Table != "filter" {
		table = " -t " + p.Table
	}
	return fmt.Sprintf("%s%s -I %s -s %s -p %s --dport %s -j ACCEPT\n# and save it where your rules are kept", p.Program,
		table, p.Base, from, proto, numbers(ports, ":"))
}

// Shut returns the command that undoes what let a packet by in the base chain in which another is
// dropped at a place. It reports false if it is not known what that was.
func (r *Ruleset) Shut(packet Packet, o Outcome, other Place) (string, bool) {
	for _, s := range o.accepts {
		p := s.place()
		if p.Program != other.Program || p.Family != other.Family || p.Table != other.Table || p.Base != other.Base {
			continue
		}
		said := s.rule.says(nil, r.sets)
		if len(said) == 0 || slices.ContainsFunc(said, func(port uint16) bool { return port != packet.Port }) {
			return fmt.Sprintf("# take %s/%d out of %s", packet.Proto, packet.Port, p), true
		}
		return p.shut(service.Ports{Proto: packet.Proto, Low: packet.Port, High: packet.Port}), true
	}
	return "", false
}

// remove returns the command that takes the rule away.
func (p Place) remove() string {
	if p.Program == "nft" {
		return fmt.Sprintf("nft delete rule %s %s %s %s\n# and the same in the file that loads this table", p.Family,
			p.Table, p.Chain, p.Rule)
	}
	return fmt.Sprintf("%s -t %s -D %s\n# and save it where your rules are kept", p.Program, p.Table,
		strings.TrimPrefix(p.Rule, "-A "))
}

// shut undoes what Allow does: the rule at this place accepts the ports and no others.
func (p Place) shut(ports service.Ports) string {
	proto := ports.Proto.String()
	switch p.Tool {
	case UFW:
		return "ufw delete allow " + numbers(ports, ":") + "/" + proto
	case Firewalld:
		what := p.zone() + "--remove-port=" + numbers(ports, "-") + "/" + proto
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	}
	return p.remove()
}

// zone names the zone of firewalld whose chain this is.
func (p Place) zone() string {
	zone, ok := strings.CutPrefix(p.Chain, "filter_IN_")
	if !ok {
		zone, ok = strings.CutPrefix(p.Chain, "nat_PRE_")
	}
	if !ok {
		return "" // the default zone
	}
	for _, part := range []string{"_pre", "_log", "_deny", "_allow", "_post"} {
		zone = strings.TrimSuffix(zone, part)
	}
	return "--zone=" + zone + " "
}

func numbers(p service.Ports, dash string) string {
	if p.Low == p.High {
		return fmt.Sprint(p.Low)
	}
	return fmt.Sprintf("%d%s%d", p.Low, dash, p.High)
}
