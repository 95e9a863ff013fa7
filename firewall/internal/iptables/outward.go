package iptables

import "fmt"

// What goes out, and what is passed on. The laws are those of the guard by nftables: see
// reviveRules, begunRules, passingRules and hushRules there. No table of iptables has a chain
// behind the translation of sources, as hush is there: what stands in for it is in door, begun
// and arrived.

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

// revive looks at what leaves guarded ports.
func (s *script) revive() {
	s.add(chainRevive, "-o lo -j RETURN")
	s.trusted(chainRevive, "-o")
	s.targets(chainRevive, saddrEnd, sportEnd, "-g "+chainBegun+there)
	s.guarded(chainRevive, sportEnd, "-g "+chainBegun)
}

// begun decides about what leaves a guarded port.
func (s *script) begun(p place) {
	c := chainBegun + p.suffix
	s.add(c, "-m conntrack --ctstate UNTRACKED -j RETURN")
	s.add(c, "%s -g %s", s.in(p.grants, p.out), chainSpeak)
	if s.v6 && p.suffix == "" {
		s.add(c, "%s -g %s", s.near(nearOut, linkOut), chainSpeak)
	}
	s.add(c, "%s -g %s", s.carried(flowOut, peerOut), chainSpeak)
	for _, cut := range s.r.Cut {
		s.add(c, "%s %s -g %s", hasPort(cut, sportEnd), s.marked(), chainHush)
	}
	s.add(c, "%s -j RETURN", s.marked())
	s.add(c, "-p udp -m conntrack --ctdir REPLY -g %s", chainShun)
	s.add(c, "-p udp %s -g %s", s.in(SetMet, peerOut), chainShun)
	if s.v6 {
		// Its answers come in by this link only.
		s.add(c, "-d fe80::/10 -m conntrack --ctstate NEW %s", s.remember(setLinked, linkOut))
	}
	s.add(c, "-p udp -m conntrack --ctdir ORIGINAL --ctstate NEW -g %s", chainOwn)
	s.add(c, "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctdir ORIGINAL --ctstate NEW -g %s", chainOwn)
	s.add(c, "-j DROP")
}

// begins are the chains that begun goes to.
func (s *script) begins() {
	s.add(chainSpeak, "%s", s.remember(SetMet, peerOut))
	s.add(chainSpeak, "%s", s.mark())
	s.add(chainOwn, "%s", s.mark())
	s.add(chainShun, "%s", s.remember(SetMet, peerOut))
	s.add(chainShun, "-j DROP")
	// A reset tells the client that the session is over.
	s.add(chainHush, "-p tcp -m tcp --tcp-flags RST RST -j RETURN")
	s.add(chainHush, "-m conntrack --ctdir REPLY -j DROP")
	// A flow of the host's own goes on, but not to whom a grant admitted.
	s.add(chainHush, "%s -j DROP", s.in(SetMet, peerOut))
}

// passing looks at what is forwarded to services at targets, and from them.
func (s *script) passing() {
	s.trusted(chainPassing, "-i", "-o")
	// What another table's DNAT leads there has not been at door.
	s.targets(chainPassing, daddrEnd, dportEnd, "-g "+chainPassed)
	if s.r.bridged {
		// On a bridge a target cannot be told from a stranger who claims to be one.
		s.targets(chainPassing, saddrEnd, sportEnd,
			fmt.Sprintf("-m conntrack --ctstate NEW %s -m physdev --physdev-is-bridged -j DROP", s.unmarked()))
	}
	s.targets(chainPassing, saddrEnd, sportEnd, "-g "+chainBegun+there)

	s.cut(chainPassed, dportEnd, "-g "+chainCut+there)
	s.admitted(chainPassed, places[1])
}
