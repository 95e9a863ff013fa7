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
	Base                 string // the base chain that leads to it
	Tool                 Tool
	Program              string // nft, iptables, ip6tables-legacy and so on

	// Bound is the current destination of a packet dropped there, if it is not the one it was sent to. The address is
	// zero if the packet stays on this host, the port is zero if it is unchanged.
	Bound netip.AddrPort
}

// Tool is the program that made a table, and through which it must be changed.
type Tool string

// Tools that the names in their tables identify.
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
	if strings.Contains(p.Rule, "--match-set f2b-") { // its rule is in INPUT
		p.Tool = Fail2ban
	}
	return p
}

// toolOf identifies the tool by names, that of the chain first, because tools share the tables of iptables.
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

// String describes the place: "table inet filter, chain input, rule handle 7".
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

// Allow returns the command that lets ports pass at this place. The ports are those that a packet was sent to; if
// DNAT has changed its destination, the command names the new one.
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

// allowOn is Allow for packets that leave for another machine.
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

// insert returns the command that puts a rule first: it accepts ports under a condition, which is given in the words
// of nft and of iptables.
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

// AllowFrom returns the command that lets ports pass at this place for one sender. At a ban it is the command that
// lifts the ban.
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

// Shut returns the command that removes the rule that accepts a packet in the same base chain where the place other
// drops another one. It returns false if that rule is unknown.
func (r *Ruleset) Shut(packet Packet, o Outcome, other Place) (string, bool) {
	for _, s := range o.accepts {
		p := s.place()
		if p.Program != other.Program || p.Family != other.Family || p.Table != other.Table || p.Base != other.Base {
			continue
		}
		said := s.rule.says(nil, r.sets)
		if len(said) == 0 || slices.ContainsFunc(said, func(port uint16) bool { return port != packet.Port }) {
			return fmt.Sprintf("# remove %s/%d from %s", packet.Proto, packet.Port, p), true
		}
		return p.shut(service.Ports{Proto: packet.Proto, Low: packet.Port, High: packet.Port}), true
	}
	return "", false
}

// remove returns the command that removes the rule.
func (p Place) remove() string {
	if p.Program == "nft" {
		return fmt.Sprintf("nft delete rule %s %s %s %s\n# and the same in the file that loads this table", p.Family,
			p.Table, p.Chain, p.Rule)
	}
	return fmt.Sprintf("%s -t %s -D %s\n# and save it where your rules are kept", p.Program, p.Table,
		strings.TrimPrefix(p.Rule, "-A "))
}

// shut undoes Allow: the rule at this place accepts only these ports.
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

// zone returns the option that names the firewalld zone of this chain.
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
