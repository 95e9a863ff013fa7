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
	family, table, chain string
	rule                 string // empty: the policy
	base                 string // the base chain that leads to it
	tool                 tool
	program              string // nft, iptables, ip6tables-legacy and so on

	// bound is the current destination of a packet dropped there, if it is not the one it was sent to. The address is
	// zero if the packet stays on this host, the port is zero if it is unchanged.
	bound netip.AddrPort
}

// tool is the program that made a table, and through which it must be changed.
type tool string

// Tools that the names in their tables identify.
const (
	byHand    tool = ""
	ufw       tool = "ufw"
	firewalld tool = "firewalld"
	docker    tool = "docker"
	fail2ban  tool = "fail2ban"
)

func (c *chain) place(r rule, base *chain) Place {
	p := Place{family: c.table.family, table: c.table.name, chain: c.name, base: base.name,
		program: c.table.program, tool: toolOf(c)}
	if r != nil {
		p.rule = r.String()
	}
	if strings.Contains(p.rule, "--match-set f2b-") { // its rule is in INPUT
		p.tool = fail2ban
	}
	return p
}

// toolOf identifies the tool by names, that of the chain first, because tools share the tables of iptables.
func toolOf(c *chain) tool {
	if t := toolByName(c.name); t != byHand {
		return t
	}
	if c.table.name == "firewalld" {
		return firewalld
	}
	if c.table.kind == nftables {
		return toolByName(c.table.name)
	}
	if c.hook == noHook {
		return byHand
	}
	for _, tool := range []struct {
		chain string
		tool  tool
	}{{"ufw-before-input", ufw}, {"ufw6-before-input", ufw}, {"INPUT_ZONES", firewalld}} {
		if c.table.chains[tool.chain] != nil {
			return tool.tool
		}
	}
	return byHand
}

func toolByName(name string) tool {
	for prefix, tool := range map[string]tool{"ufw": ufw, "DOCKER": docker, "f2b-": fail2ban} {
		if strings.HasPrefix(name, prefix) {
			return tool
		}
	}
	return byHand
}

// String describes the place: "table inet filter, chain input, rule handle 7".
func (p Place) String() string {
	what := "policy drop"
	if p.rule != "" {
		what = "rule " + p.rule
	}
	table := "table " + p.family + " " + p.table
	if p.program != "nft" {
		table = p.program + " table " + p.table
	}
	return fmt.Sprintf("%s, chain %s, %s", table, p.chain, what)
}

// Policy returns the base chain, such as "inet filter input", if its policy drops and not a rule; false for the chains
// of iptables too. When the kernel replaces a table, it sets the policy drop only after the rules have been in force
// for an instant (nft_chain_commit_drop_policy in net/netfilter/nf_tables_api.c).
func (p Place) Policy() (chain string, ok bool) {
	return p.family + " " + p.table + " " + p.chain, p.program == "nft" && p.rule == ""
}

// Allow returns the command that lets ports pass at this place. The ports are those that a packet was sent to; if
// DNAT has changed its destination, the command names the new one.
func (p Place) Allow(ports service.Ports) string {
	if port := p.bound.Port(); port != 0 {
		ports.Low, ports.High = port, port
	}
	if p.bound.Addr().IsValid() {
		return p.allowOn(ports, p.bound.Addr())
	}
	proto := ports.Proto.String()
	switch p.tool {
	case ufw:
		return "ufw allow " + numbers(ports, ":") + "/" + proto
	case firewalld:
		what := p.zone() + "--add-port=" + numbers(ports, "-") + "/" + proto
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	}
	return p.insert(ports, "", "")
}

// allowOn is Allow for packets that leave for another machine.
func (p Place) allowOn(ports service.Ports, to netip.Addr) string {
	proto := ports.Proto.String()
	switch p.tool {
	case ufw:
		return fmt.Sprintf("ufw route allow proto %s to %v port %s", proto, to, numbers(ports, ":"))
	case firewalld:
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
	switch p.tool {
	case docker:
		return p.program + " -I DOCKER-USER" + iptables + " -j ACCEPT"
	case fail2ban:
		return "fail2ban-client banned\n# and unban what is banned by mistake: fail2ban-client unban ADDRESS"
	}
	if p.program == "nft" {
		return fmt.Sprintf("nft insert rule %s %s %s %s%s dport %s accept\n# and the same in the file that loads this table",
			p.family, p.table, p.base, nft, proto, numbers(ports, "-"))
	}
	table := ""
	if p.table != "filter" {
		table = " -t " + p.table
	}
	return fmt.Sprintf("%s%s -I %s%s -j ACCEPT\n# and save it where your rules are kept",
		p.program, table, p.base, iptables)
}

// AllowFrom returns the command that lets ports pass at this place for one sender. At a ban it is the command that
// lifts the ban.
func (p Place) AllowFrom(from netip.Addr, ports service.Ports) string {
	proto := ports.Proto.String()
	switch p.tool {
	case ufw:
		return fmt.Sprintf("ufw insert 1 allow proto %s from %s to any port %s", proto, from, numbers(ports, ":"))
	case firewalld:
		what := fmt.Sprintf(`%s--add-rich-rule='rule priority="-1" family="%s" source address="%s" port `+
			`port="%s" protocol="%s" accept'`,
			p.zone(), map[bool]string{true: "ipv4", false: "ipv6"}[from.Is4()], from, numbers(ports, "-"), proto)
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	case docker:
		return fmt.Sprintf("%s -I DOCKER-USER -s %s -p %s --dport %s -j ACCEPT", p.program, from, proto, numbers(ports, ":"))
	case fail2ban:
		return "fail2ban-client unban " + from.String()
	}
	if p.program == "nft" {
		return fmt.Sprintf("nft insert rule %s %s %s %s saddr %s %s dport %s accept\n# and the same in the "+
			"file that loads this table",
			p.family, p.table, p.base, map[bool]string{true: "ip", false: "ip6"}[from.Is4()], from, proto, numbers(ports, "-"))
	}
	table := ""
	if p.table != "filter" {
		table = " -t " + p.table
	}
	return fmt.Sprintf("%s%s -I %s -s %s -p %s --dport %s -j ACCEPT\n# and save it where your rules are kept", p.program,
		table, p.base, from, proto, numbers(ports, ":"))
}

// Shut returns the command that removes the rule that accepts a packet in the same base chain where the place other
// drops another one. It returns false if that rule is unknown.
func (r *Ruleset) Shut(packet Packet, o Outcome, other Place) (string, bool) {
	for _, s := range o.accepts {
		p := s.place()
		if p.program != other.program || p.family != other.family || p.table != other.table || p.base != other.base {
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
	if p.program == "nft" {
		return fmt.Sprintf("nft delete rule %s %s %s %s\n# and the same in the file that loads this table", p.family,
			p.table, p.chain, p.rule)
	}
	return fmt.Sprintf("%s -t %s -D %s\n# and save it where your rules are kept", p.program, p.table,
		strings.TrimPrefix(p.rule, "-A "))
}

// shut undoes Allow: the rule at this place accepts only these ports.
func (p Place) shut(ports service.Ports) string {
	proto := ports.Proto.String()
	switch p.tool {
	case ufw:
		return "ufw delete allow " + numbers(ports, ":") + "/" + proto
	case firewalld:
		what := p.zone() + "--remove-port=" + numbers(ports, "-") + "/" + proto
		return fmt.Sprintf("firewall-cmd %s && firewall-cmd --permanent %[1]s", what)
	}
	return p.remove()
}

// zone returns the option that names the firewalld zone of this chain.
func (p Place) zone() string {
	zone, ok := strings.CutPrefix(p.chain, "filter_IN_")
	if !ok {
		zone, ok = strings.CutPrefix(p.chain, "nat_PRE_")
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
