package survey

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// kind tells by which means a table was read.
type kind uint8

const (
	nftables kind = iota // from the kernel
	iptables             // as iptables-nft-save prints it
	legacy               // as iptables-legacy-save prints it
)

type tableKey struct {
	kind         kind
	family, name string // family as nft says it: inet, ip, ip6, netdev
}

type table struct {
	tableKey
	program           string // what changes it: nft, iptables, ip6tables-legacy
	owned, persistent bool
	chains            map[string]*chain
}

// ours is the name of the table of package firewall, and what those of its chains in the tables
// of iptables begin with.
const ours = "spa"

// ours reports whether it is a table of package firewall, which has a second one for a moment
// while it changes hands.
func (t *table) ours() bool {
	return t.kind == nftables && t.family == "inet" && (t.name == ours || strings.HasPrefix(t.name, ours+"-"))
}

// chain is a list of rules. One with a hook is a base chain.
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
	elsewhere // output and postrouting, which no packet from outside meets before it is in
)

// rule weighs one packet. It may change what is known about it.
type rule interface {
	weigh(p *passage) ruling
	String() string
	leads() bool                                  // packets elsewhere
	restores(bits uint32) bool                    // some of these bits of the connection mark as the packet's
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

// ruling is what a rule says: with no verdicts, go on; with several, one of them.
type ruling struct {
	sure     bool // otherwise it may as well say nothing
	verdicts []verdict
}

type action uint8

const (
	accepts action = iota
	drops
	jumps
	goes // goto: does not come back
	returns
	continues
	anything // not understood
)

type verdict struct {
	action action
	chain  string // of jumps and goes
	answer Answer // of drops
}

// passage is a packet on its way, and what has been found out on it.
type passage struct {
	packet   Packet
	link     Link
	out      string // the interface it leaves by; empty: not known, or it stays
	local    bool   // it is for this host, as far as it has come
	hook     hook
	tracking bool  // connection tracking has seen it
	reached  truth // whether it gets to the rule that is being weighed
	rules    *Ruleset

	mark      uint32
	markKnown truth // maybe never
	untracked truth
	notrack   Place
	redirect  truth    // DNAT took place
	sources   bool     // a rule that names sources was passed by
	anybody   bool     // the sender may be any that a rule names
	detours   *detours // what is noted of them; nil: nothing
	mangled   bool     // a rule may have rewritten the packet
	here      spot     // of the rule that is being weighed

	headers map[uint32][]cell // as nf_tables reads them; nil: to be made
	scratch any               // what rules of nf_tables run on

	steps int
}

// spot is a rule on the way from a base chain. Most are passed by: a Place is made of few.
type spot struct {
	chain *chain
	rule  rule
	base  *chain
}

func (s spot) place() Place { return s.chain.place(s.rule, s.base) }

func (p *passage) v4() bool { return p.packet.To.Is4() }

// family is the packet's, as nft says it.
func (p *passage) family() string {
	if p.v4() {
		return "ip"
	}
	return "ip6"
}

// concerns reports whether packets of this kind come by the base chain.
func (c *chain) concerns(p *passage) bool {
	if c.hook != p.hook {
		return false
	}
	if c.hook == ingress {
		return slices.Contains(c.devices, p.link.Name)
	}
	return c.table.family == "inet" || c.table.family == p.family()
}

// sortBases puts base chains in the order of the kernel; where that has none, in one that stays.
func sortBases(bases []*chain) {
	slices.SortFunc(bases, func(a, b *chain) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.table.kind, b.table.kind),
			cmp.Compare(a.table.family, b.table.family), cmp.Compare(a.table.name, b.table.name), cmp.Compare(a.name, b.name))
	})
}

// linkOf returns the interface whose network an address is in.
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

// isLocal reports whether an address is one of this host.
func isLocal(links []Link, a netip.Addr) bool {
	return a.IsLoopback() || slices.ContainsFunc(links, func(l Link) bool { return l.Own(a) })
}
