package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/spa"
)

// guardRules is what the helper makes rules of. All that is in it was checked when the
// helper has got it: see check.
type guardRules struct {
	Mark      uint32
	Guarded   []spa.Ports
	Cut       []spa.Ports
	Addresses []netip.Addr
	Knock     []KnockPort
	Trusted   []string
	Trial     bool // guarded are the ports that are in a set, which they leave by themselves
}

// Chains. Those of table mangle stand in this order around a packet: PREROUTING goes to
// guard, for this host to here, for a guarded port to door, or to cut where sessions end with
// their grants; OUTPUT to revive, from a guarded port to speak or speakCut. None accepts:
// what passes goes on to the rules of others.
const (
	chainGuard    = "spa-guard"
	chainHere     = "spa-here"
	chainDoor     = "spa-door"
	chainCut      = "spa-cut"
	chainEnter    = "spa-enter" // counts those who come in by a grant
	chainAdmit    = "spa-admit"
	chainRevive   = "spa-revive"
	chainSpeak    = "spa-speak"
	chainSpeakCut = "spa-speak-cut"

	chainKnock   = "spa-knock" // table raw
	chainReceipt = "spa-receipt"
)

// signature is the comment by which our rules are known.
const signature = "sallyport"

// table is a table of iptables: our chains in it, and which of them the built-in ones jump to.
type table struct {
	name   string
	chains []string
	jumps  [][2]string // from, to
}

func tables() [2]table {
	return [2]table{
		{"raw", []string{chainKnock, chainReceipt},
			[][2]string{{"PREROUTING", chainKnock}, {"OUTPUT", chainReceipt}}},
		{"mangle", []string{chainGuard, chainHere, chainDoor, chainCut, chainEnter, chainAdmit,
			chainRevive, chainSpeak, chainSpeakCut},
			[][2]string{{"PREROUTING", chainGuard}, {"OUTPUT", chainRevive}}},
	}
}

// script is the rules of one family, by chain.
type script struct {
	r     *guardRules
	v6    bool
	lines map[string][]string
}

func (r *guardRules) script(v6 bool) *script {
	s := &script{r: r, v6: v6, lines: make(map[string][]string)}
	s.knock()
	s.receipt()
	s.guard()
	s.door(chainDoor, false)
	s.door(chainCut, true)
	s.admit()
	s.revive()
	s.speak(chainSpeak, false)
	s.speak(chainSpeakCut, true)
	return s
}

// add adds a rule. The first of each chain says whose it is.
func (s *script) add(chain, format string, args ...any) {
	rule := "-A " + chain + " "
	if len(s.lines[chain]) == 0 {
		rule += "-m comment --comment " + signature + " "
	}
	s.lines[chain] = append(s.lines[chain], rule+fmt.Sprintf(format, args...))
}

// set is the name of a set of this family.
func (s *script) set(name string) string { return setName(name, s.v6) }

func setName(name string, v6 bool) string {
	if v6 {
		return name + "6"
	}
	return name + "4"
}

// ours reports whether an address belongs to this script's family.
func (s *script) ours(a netip.Addr) bool { return a.Is6() == s.v6 }

func (s *script) knock() {
	s.add(chainKnock, "-i lo -j RETURN")
	for _, k := range s.r.Knock {
		if !k.Shared {
			s.add(chainKnock, "-p udp -m udp --dport %d -m addrtype --dst-type LOCAL -j DROP", k.Port)
			s.add(chainKnock, "-p udp -m udp --dport %d -m addrtype --dst-type ANYCAST -j DROP", k.Port)
		}
	}
}

// receipt keeps receipts out of connection tracking: see receiptRules.
func (s *script) receipt() {
	for _, k := range s.r.Knock {
		marked := ""
		if k.Shared {
			marked = fmt.Sprintf("-m mark --mark %#x/%#x ", s.r.Mark, s.r.Mark)
		}
		s.add(chainReceipt, "%s-p udp -m udp --sport %d -j CT --notrack", marked, k.Port)
	}
}

func (s *script) guard() {
	s.add(chainGuard, "-i lo -j RETURN")
	for _, name := range s.r.Trusted {
		s.add(chainGuard, "-i %s -j RETURN", name)
	}
	for _, p := range s.r.Cut {
		// A session that was there before connection tracking is the server's if that spoke first.
		s.add(chainGuard, "-p %v -m %[1]v --dport %d:%d -m conntrack --ctdir REPLY %s -m addrtype --dst-type LOCAL%s -g %s",
			p.Proto, p.Low, p.High, s.marked(), s.trial(p.Proto, "dport"), chainCut)
	}
	s.add(chainGuard, "-m conntrack --ctdir REPLY -j RETURN")
	s.forThisHost()
	s.ports(chainHere, "dport", chainDoor, chainCut)
}

// forThisHost leads on what is for an address that is guarded.
func (s *script) forThisHost() {
	for _, a := range s.r.Addresses {
		if s.ours(a) {
			s.add(chainGuard, "-d %s -g %s", a, chainHere)
		}
	}
	// One rule a type: for IPv6 the kernel matches several only where all hold.
	types := []string{"LOCAL", "BROADCAST", "ANYCAST", "MULTICAST"}
	if s.v6 {
		types = []string{"LOCAL", "ANYCAST", "MULTICAST"} // there is no broadcast
	}
	for _, kind := range types {
		s.add(chainGuard, "-m addrtype --dst-type %s -g %s", kind, chainHere)
	}
}

// ports leads guarded ports on. On trial the kernel lets go of them by itself.
func (s *script) ports(from, end, door, cut string) {
	for _, p := range splitPorts(s.r.Guarded, s.r.Cut) {
		to := door
		if p.cut {
			to = cut
		}
		s.add(from, "-p %v -m %[1]v --%s %d:%d%s -g %s", p.Proto, end, p.Low, p.High, s.trial(p.Proto, end), to)
	}
}

func (s *script) trial(proto spa.Proto, end string) string {
	switch {
	case !s.r.Trial:
		return ""
	case end == "dport":
		return fmt.Sprintf(" -m set --match-set %s dst", trialSet(proto))
	}
	return fmt.Sprintf(" -m set --match-set %s src", trialSet(proto))
}

func trialSet(p spa.Proto) string { return "spa-" + p.String() }

// door decides about packets for guarded ports. Rules and order are those of guardRules.
func (s *script) door(chain string, cut bool) {
	if !cut {
		mark := s.marked()
		s.add(chain, "%s -m conntrack --ctstate RELATED -j RETURN", mark)
		s.add(chain, "-p udp %s -m conntrack --ctstate ESTABLISHED -j RETURN", mark)
		s.add(chain, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN %s -m conntrack --ctstate ESTABLISHED -j RETURN", mark)
	}
	carried := fmt.Sprintf("-m set --match-set %s src,src,dst -m set --match-set %s src,dst -g %s", s.set(setFlows), s.set(setPeers), chainAdmit)
	s.add(chain, "-p tcp -m tcp --tcp-flags SYN NONE %s", carried)
	s.add(chain, "-p udp %s", carried)
	s.add(chain, "-m set --match-set %s src,dst -g %s", s.set(setGrants), chainEnter)
	s.add(chain, "-j DROP")
}

// admit marks flows. What another table leaves untracked has no mark to set, and passes.
func (s *script) admit() {
	mark := fmt.Sprintf("-j CONNMARK --set-xmark %#x/%#x", s.r.Mark, s.r.Mark)
	s.add(chainEnter, "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment new")
	s.add(chainEnter, "-p udp -m conntrack --ctstate NEW -m comment --comment new")
	s.add(chainEnter, "%s", mark)
	s.add(chainAdmit, "%s", mark)
}

// revive looks at what leaves guarded ports: see reviveRules.
func (s *script) revive() {
	s.add(chainRevive, "-o lo -j RETURN")
	for _, name := range s.r.Trusted {
		s.add(chainRevive, "-o %s -j RETURN", name)
	}
	s.ports(chainRevive, "sport", chainSpeak, chainSpeakCut)
}

func (s *script) speak(chain string, cut bool) {
	s.add(chain, "-m set --match-set %s dst,src -g %s", s.set(setGrants), chainAdmit)
	s.add(chain, "-m set --match-set %s dst,dst,src -m set --match-set %s dst,src -g %s", s.set(setFlows), s.set(setPeers), chainAdmit)
	if cut { // the host's own flows from such a port are neither replies nor marked
		s.add(chain, "-p tcp -m tcp --tcp-flags RST RST -j RETURN")
		s.add(chain, "-m conntrack --ctdir REPLY -j DROP")
		s.add(chain, "%s -j DROP", s.marked())
	}
	s.add(chain, "-p udp -m conntrack --ctdir REPLY -m connmark ! --mark %#x/%#x -j DROP", s.r.Mark, s.r.Mark)
	s.add(chain, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctstate NEW -j DROP")
}

// marked is the condition that the guard has admitted the flow.
func (s *script) marked() string {
	return fmt.Sprintf("-m connmark --mark %#x/%#x", s.r.Mark, s.r.Mark)
}

// restore is the input for iptables-restore --noflush that makes a table what the script
// says: one transaction, in which each of our chains is emptied and filled, and the jumps to
// them stand first.
func (s *script) restore(t table, was *saved) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", t.name)
	for _, chain := range t.chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", chain)
	}
	for _, rule := range was.others {
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

// unload is the input that takes all of ours out of a table.
func unload(t table, was *saved) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", t.name)
	for _, rule := range was.others {
		fmt.Fprintf(&b, "-D %s\n", strings.TrimPrefix(rule, "-A "))
	}
	for _, chain := range t.chains {
		if _, there := was.chains[chain]; there {
			fmt.Fprintf(&b, "-F %s\n", chain)
		}
	}
	for _, chain := range t.chains {
		if _, there := was.chains[chain]; there {
			fmt.Fprintf(&b, "-X %s\n", chain)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// cuttable is a range of guarded ports, and whether its sessions end with the grant.
type cuttable struct {
	spa.Ports
	cut bool
}

// splitPorts puts guarded ports whose sessions are cut before the others, so that they are
// found first where ranges overlap.
func splitPorts(guarded, cut []spa.Ports) []cuttable {
	var all []cuttable
	for _, p := range cut {
		all = append(all, cuttable{p, true})
	}
	for _, p := range guarded {
		if !slices.Contains(cut, p) {
			all = append(all, cuttable{p, false})
		}
	}
	return all
}

// check refuses what has no place in a rule: the helper does not trust who asks it.
func (r *guardRules) check() error {
	c := Config{Mark: r.Mark, Guarded: slices.Concat(r.Guarded, r.Cut), Trusted: r.Trusted}
	if err := c.check(); err != nil {
		return err
	}
	for _, name := range r.Trusted {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	for _, a := range r.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("firewall: %v is no address for a rule", a)
		}
	}
	return nil
}

// checkInterface refuses the names that would be something else in a rule. The kernel takes
// nearly anything as a name; a plus sign at the end stands for any ending.
func checkInterface(name string) error {
	for _, c := range name {
		if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-@:", c) {
			return fmt.Errorf("firewall: iptables cannot be told of an interface named %q", name)
		}
	}
	if strings.HasPrefix(name, "-") {
		return fmt.Errorf("firewall: iptables cannot be told of an interface named %q", name)
	}
	return nil
}
