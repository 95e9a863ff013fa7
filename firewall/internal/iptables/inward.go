package iptables

import (
	"fmt"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// Incoming packets. The rules are those of the nftables guard: see guardRules, doorRules, linkRules and arriveRules
// in package nftables.

// knock keeps knocks out of connection tracking: see nftables' knockRules.
func (s *script) knock() {
	for _, k := range s.r.Knock {
		if !k.Shared {
			s.add(chainKnock, "-p udp -m udp --dport %d -m addrtype --dst-type LOCAL -j CT --notrack", k.Port)
			s.add(chainKnock, "-p udp -m udp --dport %d -m addrtype --dst-type ANYCAST -j CT --notrack", k.Port)
		}
	}
}

// guard selects what is for a guarded port, at any address of this host or at a target.
func (s *script) guard() {
	c := ChainGuard
	s.add(c, "-i lo -j RETURN")
	s.trusted(c, "-i")
	// Clear our mark from new flows: a tool may set all bits, and a flow that connection tracking's helpers expect
	// inherits its parent's mark.
	for _, proto := range []string{"tcp", "udp"} { // ICMP errors about a flow are "related" to it, too
		s.add(c, "-p %s -m conntrack --ctdir ORIGINAL --ctstate NEW,RELATED %s %s", proto, s.marked(), s.unmark())
	}
	// Only this host uses its addresses as a source; its own multicast loops back.
	single := "-m addrtype ! --dst-type MULTICAST"
	if !s.v6 {
		single += " -m addrtype ! --dst-type BROADCAST"
	}
	for _, kind := range []string{"LOCAL", "ANYCAST"} {
		s.guarded(c, sportEnd, fmt.Sprintf("-m addrtype --src-type %s %s -j DROP", kind, single))
	}
	// Packets from a target must arrive by the interface that routing uses for it; otherwise its new flows are not
	// its own. Only PREROUTING can check that.
	for _, state := range []string{s.unmarked(), "-m conntrack --ctstate INVALID,UNTRACKED"} {
		s.targets(c, saddrEnd, sportEnd, state+" -m rpfilter --invert -j DROP")
	}
	s.eachError(func(does string) { s.add(c, "-m addrtype --dst-type LOCAL %s", does) })
	s.elsewhere()
}

// elsewhere passes on what is for a guarded address and port.
func (s *script) elsewhere() {
	s.targets(ChainGuard, daddrEnd, dportEnd, "-g "+chainDoor+there)
	// One rule for each type: for IPv6, the kernel matches a list only if all its types apply.
	types := []string{"LOCAL", "BROADCAST", "ANYCAST", "MULTICAST"}
	if s.v6 {
		types = []string{"LOCAL", "ANYCAST", "MULTICAST"} // IPv6 has no broadcast
	}
	for _, kind := range types {
		s.add(ChainGuard, "-m addrtype --dst-type %s -g %s", kind, chainHere)
	}
	s.guarded(chainHere, dportEnd, "-g "+chainDoor)
}

// door decides on packets for guarded ports.
func (s *script) door(p place) {
	c, cut := chainDoor+p.suffix, chainCut+p.suffix
	if s.v6 {
		s.add(c, "-s fe80::/10 -j %s", chainLinks)
	}
	s.cut(c, dportEnd, "-g "+cut)
	// A bare SYN is not a reply, but connection tracking takes it for one if the peer connects at the same time.
	s.add(c, "-p udp -m conntrack --ctdir REPLY %s -j RETURN", s.marked())
	s.add(c, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctdir REPLY %s -j RETURN", s.marked())
	s.add(c, "-p udp %s -m conntrack --ctstate ESTABLISHED -j RETURN", s.marked())
	s.add(c, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN %s -m conntrack --ctstate ESTABLISHED -j RETURN", s.marked())
	// A session of such a port ends with its grant, even if its server spoke first. A flow of the host's own, to a
	// peer that no grant ever admitted, does not end.
	s.add(cut, "-p udp -m conntrack --ctdir REPLY %s %s -j RETURN", s.marked(), s.notIn(SetMet, peerIn))
	s.add(cut, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctdir REPLY %s %s -j RETURN",
		s.marked(), s.notIn(SetMet, peerIn))
	for _, c := range []string{c, cut} {
		if p.suffix == "" {
			// A reply to a masqueraded flow goes to the machine that began the flow. If that is this host, arrive
			// checks it.
			s.add(c, "-m conntrack --ctdir REPLY --ctstate SNAT -j RETURN")
		}
		s.add(c, "-g %s", chainEntry+p.suffix)
	}
}

// entry admits what a first load carries, and what has a grant.
func (s *script) entry(p place) {
	c := chainEntry + p.suffix
	s.add(c, "-p tcp -m tcp --tcp-flags SYN NONE %s -g %s", s.carried(flowIn, peerIn), chainAdmit)
	s.add(c, "-p udp %s -g %s", s.carried(flowIn, peerIn), chainAdmit)
	for _, has := range s.granted(p) {
		s.add(c, "%s -g %s", has, chainEnter)
	}
	if s.v6 && p.suffix == "" {
		s.add(c, "%s -g %s", s.near(nearIn, linkIn), chainEnter)
	}
	s.add(c, "-j DROP")
}

// links lets a link-local source through to the rest of door only on a link where it has or had a grant: connection
// tracking does not distinguish links.
func (s *script) links() {
	if !s.v6 {
		return
	}
	s.add(chainLinks, "%s -g %s", s.near(nearIn, linkIn), chainLink)
	s.add(chainLinks, "%s -g %s", s.carried(flowIn, peerIn), chainLink)
	s.add(chainLinks, "%s -g %s", s.in(setLinked, linkIn), chainLink)
	s.add(chainLinks, "-j DROP")
	s.add(chainLink, "%s", s.addTo(setLinked, linkIn))
}

// admit marks flows, and remembers admitted peers. A flow that another table leaves untracked has no mark, and
// passes.
func (s *script) admit() {
	s.add(chainEnter, "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment new")
	s.add(chainEnter, "-p udp -m conntrack --ctstate NEW -m comment --comment new")
	s.add(chainEnter, "-g %s", chainAdmit)
	s.add(chainAdmit, "%s", s.addTo(SetMet, peerIn))
	s.add(chainAdmit, "%s", s.mark())
}

// arrive filters what is delivered to this host, after all rewriting by other tables.
func (s *script) arrive() {
	s.add(chainArrive, "-i lo -j RETURN")
	s.trusted(chainArrive, "-i")
	s.handed("-p udp", "-p tcp -m tcp --tcp-flags SYN,ACK SYN")
	s.ledHere()
	s.targets(chainArrive, daddrEnd, dportEnd, "-g "+chainArrived+there)
	s.guarded(chainArrive, dportEnd, "-g "+chainArrived)
}

// handed drops packets assigned to a socket early: see nftables' handedRules. No cgroup has the number 4294967295.
func (s *script) handed(what ...string) {
	if s.r.TPROXY || !s.r.handed {
		return
	}
	for _, packets := range what {
		s.add(chainArrive, "%s -m cgroup ! --cgroup 4294967295 -m socket --nowildcard --transparent -j DROP", packets)
	}
}

func (s *script) arrived(p place) {
	c := chainArrived + p.suffix
	s.cut(c, dportEnd, "-g "+chainCut+p.suffix)
	s.admitted(c, p)
}

// admitted passes packets of flows that the guard has admitted, and those that begin a flow it admits. The mark alone
// does not prove that door passed the beginning of a flow, because another tool may have set it since. But a packet
// that arrived for a guarded port has been at door.
func (s *script) admitted(chain string, p place) {
	for _, at := range s.portsAt(p) {
		s.add(chain, "-p %v -m conntrack --ctstate NEW,RELATED --ctorigdstport %d:%d %s -j RETURN", at.Proto,
			at.Low, at.High, s.marked())
	}
	s.add(chain, "-m conntrack --ctstate NEW,RELATED -g %s", chainEntry+p.suffix)
	s.add(chain, "-p tcp -m tcp --tcp-flags SYN,ACK SYN -g %s", chainEntry+p.suffix)
	s.add(chain, "%s -j RETURN", s.marked())
	s.add(chain, "-g %s", chainEntry+p.suffix)
}

// portsAt returns the guarded ports at a place.
func (s *script) portsAt(p place) []service.Ports {
	if p.suffix == "" {
		return s.r.Guarded
	}
	all := guard.Spec{Targets: s.r.Targets}
	return all.EveryPort()
}
