package iptables

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// GuardRules are the settings from which the helper makes rules. The helper checks them on receipt: see Check.
type GuardRules struct {
	Mark     uint32
	Guarded  []service.Ports
	Cut      []service.Ports
	Targets  []guard.Target
	Forwards []guard.Forward
	Knock    []guard.KnockPort
	Trusted  []string
	TPROXY   bool // pass flows that are assigned to the socket of another port
	Trial    bool // guard only ports in a set, from which they expire
	Nets     bool // some grants are for networks

	// Set by the helper.
	quotes  bool // rules can match the packet that an ICMP error quotes
	handed  bool // rules can match packets that were assigned to a socket early
	bridged bool // bridged packets pass through the guard
}

// Chains. None of them accepts: packets that pass go on to the rules of others. In table mangle the built-in chains
// jump to ours as follows: PREROUTING to guard, INPUT to arrive, OUTPUT to revive, FORWARD to passing. Chains whose
// names end in "there" are for targets, which have grants of their own; their namesakes are for this host.
const (
	ChainGuard = "spa-guard"
	chainHere  = "spa-here"  // to this host
	chainDoor  = "spa-door"  // to a guarded port
	chainCut   = "spa-cut"   // to a guarded port whose sessions end with the grant
	chainEntry = "spa-entry" // looks for a grant
	chainLinks = "spa-links" // from a link-local address
	chainLink  = "spa-link"  // remembers its link
	chainEnter = "spa-enter" // counts new flows through a grant
	chainAdmit = "spa-admit" // marks the flow, and remembers the admitted peer

	chainArrive  = "spa-arrive"
	chainArrived = "spa-arrived" // to a guarded port, whatever its port was before rewriting
	chainError   = "spa-error"   // an ICMP error
	chainQuoted  = "spa-quoted"  // an ICMP error that belongs to no admitted flow

	chainRevive = "spa-revive"
	chainBegun  = "spa-begun" // from a guarded port
	chainHush   = "spa-hush"  // from a guarded port whose sessions end with the grant
	chainShun   = "spa-shun"  // drops, and remembers peers that a UDP server may not begin a flow with
	chainOwn    = "spa-own"   // marks a flow of the host's own
	chainSpeak  = "spa-speak" // marks the flow, and remembers the admitted peer

	chainPassing = "spa-passing"
	chainPassed  = "spa-passed" // forwarded to a target
	chainAway    = "spa-away"   // begins a flow from a target

	chainKnock   = "spa-knock" // table raw
	chainReceipt = "spa-receipt"

	chainLead = "spa-lead" // table nat: leads forwarded ports on
	chainMask = "spa-mask" // masquerades what was led on
)

// signature is the comment that identifies our rules.
const signature = "sallyport"

// table is a table of iptables: our chains in it, and the jumps to them from built-in chains.
type table struct {
	name   string
	chains []string
	jumps  [][2]string // from, to
}

// natTable is the table of our chains that exists only if ports are forwarded.
const natTable = "nat"

// Tables returns the tables that contain our chains. Its last is natTable.
func Tables() [3]table {
	return [3]table{
		{"raw", []string{chainKnock, chainReceipt},
			[][2]string{{"PREROUTING", chainKnock}, {"OUTPUT", chainReceipt}}},
		{"mangle", []string{
			ChainGuard, chainHere,
			chainDoor, chainCut, chainEntry, chainDoor + there, chainCut + there, chainEntry + there,
			chainLinks, chainLink, chainEnter, chainAdmit,
			chainArrive, chainArrived, chainArrived + there, chainError, chainQuoted,
			chainRevive, chainBegun, chainBegun + there, chainHush, chainShun, chainOwn, chainSpeak,
			chainPassing, chainPassed, chainAway,
		}, [][2]string{{"PREROUTING", ChainGuard}, {"INPUT", chainArrive}, {"OUTPUT", chainRevive},
			{"FORWARD", chainPassing}}},
		{natTable, []string{chainLead, chainMask}, [][2]string{{"PREROUTING", chainLead}, {"POSTROUTING", chainMask}}},
	}
}

// there ends the names of the chains for targets.
const there = "-there"

// place is where a service is: at this host, or at a target.
type place struct {
	suffix  string // of the names of its chains
	grants  string // its set of grants, and the packet's fields that make its key,
	in, out string // inward and outward

	nets            string // the same for grants for networks
	netsIn, netsOut string
}

var places = [2]place{
	{"", SetGrants, "src,dst", "dst,src", setNets, "src,dst", "dst,src"},
	{there, setReach, "src,dst,dst", "dst,src,src", setNetsAt, "dst,dst,src", "src,src,dst"},
}

// script is the rules of one family, by chain.
type script struct {
	r     *GuardRules
	v6    bool
	lines map[string][]string
}

func (r *GuardRules) script(v6 bool) *script {
	s := &script{r: r, v6: v6, lines: make(map[string][]string)}
	s.knock()
	s.receipt()
	s.guard()
	s.links()
	s.admit()
	s.arrive()
	s.handed("-p tcp -m conntrack --ctstate INVALID,NEW")
	s.revive()
	s.passing()
	s.errors()
	s.quoted()
	s.begins()
	s.lead()
	s.mask()
	for _, p := range places {
		s.door(p)
		s.entry(p)
		s.arrived(p)
		s.begun(p)
	}
	return s
}

// add adds a rule. The first rule of each chain has our signature.
func (s *script) add(chain, format string, args ...any) {
	rule := "-A " + chain + " "
	if len(s.lines[chain]) == 0 {
		rule += "-m comment --comment " + signature + " "
	}
	s.lines[chain] = append(s.lines[chain], rule+fmt.Sprintf(format, args...))
}

// set returns the name of a set in this family.
func (s *script) set(name string) string { return SetName(name, s.v6) }

// SetName returns the name of a set in a family.
func SetName(name string, v6 bool) string {
	if v6 {
		return name + "6"
	}
	return name + "4"
}

// in matches packets whose fields are in a set.
func (s *script) in(set, of string) string {
	return fmt.Sprintf("-m set --match-set %s %s", s.set(set), of)
}

// notIn matches packets whose fields are not in a set.
func (s *script) notIn(set, of string) string {
	return fmt.Sprintf("-m set ! --match-set %s %s", s.set(set), of)
}

// addTo adds a packet's fields to a set, or restarts their timeout.
func (s *script) addTo(set, of string) string { return s.addFor(guard.Remembered, set, of) }

func (s *script) addFor(d time.Duration, set, of string) string {
	return fmt.Sprintf("-j SET --add-set %s %s --exist --timeout %d", s.set(set), of, int(d.Seconds()))
}

// carried matches flows that a first load carries.
func (s *script) carried(flow, peer string) string {
	return s.in(setFlows, flow) + " " + s.in(SetPeers, peer)
}

// Fields of carried flows, for setFlows and SetPeers.
const (
	flowIn, peerIn   = "src,src,dst", "src,dst"
	flowOut, peerOut = "dst,dst,src", "dst,src"
)

// near matches packets of link-local sources that have a grant on the packet's link.
func (s *script) near(ports, link string) string {
	return s.in(setNear, ports) + " " + s.in(setLinks, link)
}

// Fields of flows with a link-local source: for setNear, and for setLinks and setLinked.
const (
	nearIn, linkIn   = "src,dst", "src,src"
	nearOut, linkOut = "dst,src", "dst,dst"
)

// marked matches flows that the guard has admitted.
func (s *script) marked() string {
	return fmt.Sprintf("-m connmark --mark %#x/%#x", s.r.Mark, s.r.Mark)
}

// unmarked matches all other tracked flows. Neither matches untracked packets.
func (s *script) unmarked() string {
	return fmt.Sprintf("-m connmark ! --mark %#x/%#x", s.r.Mark, s.r.Mark)
}

// mark sets the bit of a flow; unmark clears it.
func (s *script) mark() string {
	return fmt.Sprintf("-j CONNMARK --set-xmark %#x/%#x", s.r.Mark, s.r.Mark)
}

func (s *script) unmark() string {
	return fmt.Sprintf("-j CONNMARK --set-xmark 0x0/%#x", s.r.Mark)
}

// ours reports whether an address belongs to this script's family.
func (s *script) ours(a netip.Addr) bool { return a.Is6() == s.v6 }

// trusted passes what arrives by (-i) or leaves by (-o) trusted interfaces.
func (s *script) trusted(chain string, ways ...string) {
	for _, name := range s.r.Trusted {
		for _, way := range ways {
			s.add(chain, "%s %s -j RETURN", way, name)
		}
	}
}

// hasPort matches packets with a port of the range at one end.
func hasPort(p service.Ports, end string) string {
	return fmt.Sprintf("-p %v -m %[1]v --%s %d:%d", p.Proto, end, p.Low, p.High)
}

// guarded adds a rule for packets with a guarded port of this host at one end. On trial the kernel releases the ports
// by itself.
func (s *script) guarded(chain, end, does string) {
	for _, p := range s.r.Guarded {
		s.add(chain, "%s%s %s", hasPort(p, end), s.trial(p.Proto, end), does)
	}
}

// targets does the same for the addresses and ports of targets.
func (s *script) targets(chain, addr, end, does string) {
	for _, t := range s.r.Targets {
		for _, a := range t.Addresses {
			for _, p := range t.Ports {
				if s.ours(a) {
					s.add(chain, "%s %s %s%s %s", addr, a, hasPort(p, end), s.trial(p.Proto, end), does)
				}
			}
		}
	}
}

// cut does the same for ports whose sessions end with the grant.
func (s *script) cut(chain, end, does string) {
	for _, p := range s.r.Cut {
		s.add(chain, "%s %s", hasPort(p, end), does)
	}
}

func (s *script) trial(proto service.Proto, end string) string {
	switch {
	case !s.r.Trial:
		return ""
	case end == dportEnd:
		return fmt.Sprintf(" -m set --match-set %s dst", trialSet(proto))
	}
	return fmt.Sprintf(" -m set --match-set %s src", trialSet(proto))
}

// Ends of a packet, in the words of iptables.
const (
	sportEnd, dportEnd = "sport", "dport"
	saddrEnd, daddrEnd = "-s", "-d"
)

func trialSet(p service.Proto) string { return "spa-" + p.String() }

// Restore returns the input for iptables-restore --noflush that makes a table match the script: one transaction that
// empties and fills each of our chains, and puts the jumps to them first.
func (s *script) Restore(t table, was *saved) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", t.name)
	for _, chain := range t.chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", chain)
	}
	for _, rule := range was.Others {
		fmt.Fprintf(&b, "-D %s\n", strings.TrimPrefix(rule, "-A "))
	}
	for _, chain := range t.chains {
		for _, line := range s.lines[chain] {
			b.WriteString(line + "\n")
		}
	}
	for _, jump := range t.jumps {
		fmt.Fprintf(&b, "-I %s 1 -m comment --comment %s -j %s\n", jump[0], signature, jump[1])
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// unload returns the input that removes everything of ours from a table.
func unload(t table, was *saved) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", t.name)
	for _, rule := range was.Others {
		fmt.Fprintf(&b, "-D %s\n", strings.TrimPrefix(rule, "-A "))
	}
	for _, chain := range t.chains {
		if _, there := was.Chains[chain]; there {
			fmt.Fprintf(&b, "-F %s\n", chain)
		}
	}
	for _, chain := range t.chains {
		if _, there := was.Chains[chain]; there {
			fmt.Fprintf(&b, "-X %s\n", chain)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// Check returns an error for values that must not be in a rule: the helper does not trust the daemon.
func (r *GuardRules) Check() error {
	c := guard.Spec{Mark: r.Mark, Guarded: r.Guarded, Cut: r.Cut, Targets: r.Targets, Forwards: r.Forwards,
		Trusted: r.Trusted}
	if err := c.Check(); err != nil {
		return err
	}
	for _, name := range r.Trusted {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	for _, t := range r.Targets {
		for _, a := range t.Addresses {
			if a.Zone() != "" || a.Is4In6() {
				return fmt.Errorf("invalid address %v in a rule", a)
			}
		}
	}
	return nil
}

// checkInterface refuses names that would mean something else in a rule. The kernel accepts nearly any name; in a
// rule, a final plus sign stands for any ending.
func checkInterface(name string) error {
	for _, c := range name {
		if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-@:", c) {
			return fmt.Errorf("iptables cannot match an interface named %q", name)
		}
	}
	if strings.HasPrefix(name, "-") {
		return fmt.Errorf("iptables cannot match an interface named %q", name)
	}
	return nil
}
