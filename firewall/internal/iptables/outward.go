package iptables

import (
	"fmt"

	"sallyport/firewall/internal/guard"
)

// Outgoing and forwarded packets. The rules are those of the nftables guard: see reviveRules, begunRules,
// passingRules and hushRules in package nftables. iptables has no chain of ours after source translation, as hush is
// there: door, begun and arrived do some of its work.

// receipt keeps receipts out of connection tracking: see nftables' receiptRules.
func (s *script) receipt() {
	for _, k := range s.r.Knock {
		marked := ""
		if k.Shared {
			marked = fmt.Sprintf("-m mark --mark %#x/%#x ", s.r.Mark, s.r.Mark)
		}
		s.add(chainReceipt, "%s-p udp -m udp --sport %d -j CT --notrack", marked, k.Port)
	}
}

// revive filters what leaves guarded ports.
func (s *script) revive() {
	s.add(chainRevive, "-o lo -j RETURN")
	s.trusted(chainRevive, "-o")
	s.ledBack(chainRevive, guard.Leg.Here)
	s.targets(chainRevive, saddrEnd, sportEnd, "-g "+chainBegun+there)
	s.guarded(chainRevive, sportEnd, "-g "+chainBegun)
}

// begun decides on packets that leave a guarded port.
func (s *script) begun(p place) {
	c := chainBegun + p.suffix
	s.add(c, "-m conntrack --ctstate UNTRACKED -j RETURN")
	for _, has := range s.grantedOut(p) {
		s.add(c, "%s -g %s", has, chainSpeak)
	}
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
		// Replies are accepted only on this link.
		s.add(c, "-d fe80::/10 -m conntrack --ctstate NEW %s", s.addTo(setLinked, linkOut))
	}
	s.add(c, "-p udp -m conntrack --ctdir ORIGINAL --ctstate NEW -g %s", chainOwn)
	s.add(c, "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctdir ORIGINAL --ctstate NEW -g %s", chainOwn)
	s.add(c, "-j DROP")
}

// begins fills the chains that begun goes to.
func (s *script) begins() {
	s.add(chainSpeak, "%s", s.addTo(SetMet, peerOut))
	s.add(chainSpeak, "%s", s.mark())
	s.add(chainOwn, "%s", s.mark())
	s.add(chainShun, "%s", s.addTo(SetMet, peerOut))
	s.add(chainShun, "-j DROP")
	// Resets pass: they report to the client that the session is over.
	s.add(chainHush, "-p tcp -m tcp --tcp-flags RST RST -j RETURN")
	s.add(chainHush, "-p udp -m conntrack --ctdir REPLY -g %s", chainShun)
	s.add(chainHush, "-m conntrack --ctdir REPLY -j DROP")
	// A flow of the host's own passes, except to a peer that a grant admitted.
	s.add(chainHush, "%s -j DROP", s.in(SetMet, peerOut))
}

// passing filters what is forwarded to services at targets, and from them.
func (s *script) passing() {
	s.trusted(chainPassing, "-i", "-o")
	s.ledAway()
	// door has not seen what another table's DNAT leads there.
	s.targets(chainPassing, daddrEnd, dportEnd, "-g "+chainPassed)
	if s.r.bridged {
		// away sees another interface if br_netfilter takes a tagged frame for one of a VLAN.
		s.targets(chainPassing, saddrEnd, sportEnd,
			fmt.Sprintf("-m conntrack --ctstate NEW %s -m physdev --physdev-is-bridged -j DROP", s.unmarked()))
	}
	s.targets(chainPassing, saddrEnd, sportEnd, "-m conntrack --ctstate NEW -j "+chainAway)
	s.targets(chainPassing, saddrEnd, sportEnd, "-g "+chainBegun+there)
	s.away()

	s.cut(chainPassed, dportEnd, "-g "+chainCut+there)
	s.admitted(chainPassed, places[1])
}

// away drops a packet that begins a flow from a target and leaves by the interface by which it arrived: see nftables'
// passingRules.
func (s *script) away() {
	s.add(chainAway, "%s", s.addFor(guard.Away, setAway, "dst,dst"))
	s.add(chainAway, "%s -j DROP", s.in(setAway, "dst,src"))
	s.add(chainAway, "%s -j DROP", s.notIn(setAway, "dst,dst"))
}
