package survey

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// kind is the source of a table.
type kind uint8

const (
	nftables kind = iota // from the kernel
	iptables             // as iptables-nft-save prints it
	legacy               // as iptables-legacy-save prints it
)

type tableKey struct {
	kind         kind
	family, name string // family in nft's words: inet, ip, ip6, netdev
}

type table struct {
	tableKey
	program           string // the program that changes it: nft, iptables, ip6tables-legacy
	owned, persistent bool
	chains            map[string]*chain
}

// ours is the name of the table of package firewall, and the prefix of its chains in the tables of iptables.
const ours = "spa"

// ours reports whether this is a table of package firewall, which has a second one, the standby table, while it
// replaces the first.
func (t *table) ours() bool {
	return t.kind == nftables && t.family == "inet" && (t.name == ours || strings.HasPrefix(t.name, ours+"-"))
}

// chain is a list of rules. A chain with a hook is a base chain.
type chain struct {
	table    *table
	name     string
	hook     hook
	priority int32
	drop     bool     // the policy
	devices  []string // of an ingress chain
	rules    []rule
}

type hook uint8

const (
	noHook hook = iota
	ingress
	prerouting
	input
	forward
	elsewhere // output and postrouting, which a packet from outside meets only after it is in
)

// rule weighs one packet. Weighing may change what is known about the packet.
type rule interface {
	weigh(p *passage) ruling
	String() string
	leads() bool                                  // leads packets elsewhere
	restores(bits uint32) bool                    // copies some of these bits of the connection mark to packets
	says(ports []uint16, sets setReader) []uint16 // appends the ports that it compares with
}

// truth is one of three values.
type truth uint8

const (
	no truth = iota
	maybe
	yes
)

func (t truth) and(u truth) truth { return min(t, u) }
func (t truth) not() truth        { return yes - t }

func certain(b bool) truth {
	if b {
		return yes
	}
	return no
}

// ruling is a rule's decision: without verdicts, the next rule decides; with several, one of them applies.
type ruling struct {
	sure     bool // false: the rule may also not match
	verdicts []verdict
}

type action uint8

const (
	accepts action = iota
	drops
	jumps
	goes // goto: does not return
	returns
	continues
	anything // not understood
)

type verdict struct {
	action action
	chain  string // of jumps and goes
	answer Answer // of drops
}

// passage is a packet on its way, and what is known about it.
type passage struct {
	packet   Packet
	link     Link
	out      string // the interface it leaves by; empty: unknown, or it stays
	local    bool   // the packet is for this host, as addressed now
	hook     hook
	tracking bool  // connection tracking has seen the packet
	reached  truth // whether the packet reaches the rule being weighed
	rules    *Ruleset

	mark      uint32
	markKnown truth // maybe or yes, never no
	untracked truth
	notrack   Place
	redirect  truth    // DNAT took place
	sources   bool     // a rule that names sources did not match
	anybody   bool     // the sender may be any that a rule names
	detours   *detours // records detours; nil: does not
	mangled   bool     // a rule may have rewritten the packet
	here      spot     // the rule being weighed

	headers map[uint32][]cell // as nf_tables reads them; nil: not made yet
	scratch any               // the machine for rules of nf_tables

	steps int
}

// spot is a rule on the way from a base chain. Few spots become a Place.
type spot struct {
	chain *chain
	rule  rule
	base  *chain
}

func (s spot) place() Place { return s.chain.place(s.rule, s.base) }

func (p *passage) v4() bool { return p.packet.To.Is4() }

// family returns the packet's family, in nft's words.
func (p *passage) family() string {
	if p.v4() {
		return "ip"
	}
	return "ip6"
}

// concerns reports whether the packet passes through the base chain.
func (c *chain) concerns(p *passage) bool {
	if c.hook != p.hook {
		return false
	}
	if c.hook == ingress {
		return slices.Contains(c.devices, p.link.Name)
	}
	return c.table.family == "inet" || c.table.family == p.family()
}

// sortBases sorts base chains in the kernel's order, and those of equal priority by kind and name.
func sortBases(bases []*chain) {
	slices.SortFunc(bases, func(a, b *chain) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.table.kind, b.table.kind),
			cmp.Compare(a.table.family, b.table.family), cmp.Compare(a.table.name, b.table.name), cmp.Compare(a.name, b.name))
	})
}

// linkOf returns the interface whose network contains an address.
func linkOf(links []Link, a netip.Addr) (Link, bool) {
	for _, l := range links {
		for _, prefix := range l.Prefixes {
			if prefix.Masked().Contains(a) {
				return l, true
			}
		}
	}
	return Link{}, false
}

// isLocal reports whether an address is this host's.
func isLocal(links []Link, a netip.Addr) bool {
	return a.IsLoopback() || slices.ContainsFunc(links, func(l Link) bool { return l.Own(a) })
}
