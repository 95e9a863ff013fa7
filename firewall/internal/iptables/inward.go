package iptables

import (
	"fmt"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// What comes in. The laws are those of the guard by nftables: see guardRules, doorRules, linkRules
// and arriveRules there.

// knock keeps knocks out of connection tracking: see knockRules.
func (s *script) knock() {
	for _, k := range s.r.Knock {
		if !k.Shared {
			s.add(chainKnock, "-p udp -m udp --dport %d -m addrtype --dst-type LOCAL -j CT --notrack", k.Port)
			s.add(chainKnock, "-p udp -m udp --dport %d -m addrtype --dst-type ANYCAST -j CT --notrack", k.Port)
		}
	}
}

// guard finds what is for a guarded port, at any address of this host or at a target.
func (s *script) guard() {
	c := ChainGuard
	s.add(c, "-i lo -j RETURN")
	s.trusted(c, "-i")
	// A new flow has our mark from nobody else: not from a tool that sets all bits, nor from the
	// flow in which connection tracking's helpers came to expect it.
	for _, proto := range []string{"tcp", "udp"} { // errors about a flow are "related" to it, too
		s.add(c, "-p %s -m conntrack --ctdir ORIGINAL --ctstate NEW,RELATED %s %s", proto, s.marked(), s.unmark())
	}
	// Nobody else speaks for this host; its own multicast comes back to it.
	single := "-m addrtype ! --dst-type MULTICAST"
	if !s.v6 {
		single += " -m addrtype ! --dst-type BROADCAST"
	}
	for _, kind := range []string{"LOCAL", "ANYCAST"} {
		s.guarded(c, sportEnd, fmt.Sprintf("-m addrtype --src-type %s %s -j DROP", kind, single))
	}
	// What a target sends comes from where the routing has the target: else its new flows are not
	// its own. That can be asked only here.
	for _, state := range []string{s.unmarked(), "-m conntrack --ctstate INVALID,UNTRACKED"} {
		s.targets(c, saddrEnd, sportEnd, state+" -m rpfilter --invert -j DROP")
	}
	s.eachError(func(does string) { s.add(c, "-m addrtype --dst-type LOCAL %s", does) })
	s.elsewhere()
}

// elsewhere leads on what is for a guarded address and port.
func (s *script) elsewhere() {
	s.targets(ChainGuard, daddrEnd, dportEnd, "-g "+chainDoor+there)
	// One rule a type: for IPv6 the kernel matches several only where all hold.
	types := []string{"LOCAL", "BROADCAST", "ANYCAST", "MULTICAST"}
	if s.v6 {
		types = []string{"LOCAL", "ANYCAST", "MULTICAST"} // there is no broadcast
	}
	for _, kind := range types {
		s.add(ChainGuard, "-m addrtype --dst-type %s -g %s", kind, chainHere)
	}
	s.guarded(chainHere, dportEnd, "-g "+chainDoor)
}

// door decides about packets for guarded ports.
func (s *script) door(p place) {
	c, cut := chainDoor+p.suffix, chainCut+p.suffix
	if s.v6 {
		s.add(c, "-s fe80::/10 -j %s", chainLinks)
	}
	s.cut(c, dportEnd, "-g "+cut)
	// A bare SYN is no reply, though connection tracking takes it for one, of a peer that connects
	// at the same time.
	s.add(c, "-p udp -m conntrack --ctdir REPLY %s -j RETURN", s.marked())
	s.add(c, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctdir REPLY %s -j RETURN", s.marked())
	s.add(c, "-p udp %s -m conntrack --ctstate ESTABLISHED -j RETURN", s.marked())
	s.add(c, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN %s -m conntrack --ctstate ESTABLISHED -j RETURN", s.marked())
	// A session of such a port ends with its grant, also where its server spoke first; a flow of
	// the host's own, to whom no grant ever admitted, does not.
	s.add(cut, "-p udp -m conntrack --ctdir REPLY %s %s -j RETURN", s.marked(), s.notIn(SetMet, peerIn))
	s.add(cut, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN -m conntrack --ctdir REPLY %s %s -j RETURN",
		s.marked(), s.notIn(SetMet, peerIn))
	for _, c := range []string{c, cut} {
		if p.suffix == "" {
			// The answer to a flow that was masqueraded goes to whom that flow is of. If that is this
			// host, arrive looks at it.
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
	s.add(c, "%s -g %s", s.in(p.grants, p.in), chainEnter)
	if s.v6 && p.suffix == "" {
		s.add(c, "%s -g %s", s.near(nearIn, linkIn), chainEnter)
	}
	s.add(c, "-j DROP")
}

// links lets a link-local source through to the rest of door only on a link on which it was
// granted something: connection tracking does not know links apart.
func (s *script) links() {
	if !s.v6 {
		return
	}
	s.add(chainLinks, "%s -g %s", s.near(nearIn, linkIn), chainLink)
	s.add(chainLinks, "%s -g %s", s.carried(flowIn, peerIn), chainLink)
	s.add(chainLinks, "%s -g %s", s.in(setLinked, linkIn), chainLink)
	s.add(chainLinks, "-j DROP")
	s.add(chainLink, "%s", s.remember(setLinked, linkIn))
}

// admit marks flows, and remembers who was admitted. What another table leaves untracked has no
// mark to set, and passes.
func (s *script) admit() {
	s.add(chainEnter, "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment new")
	s.add(chainEnter, "-p udp -m conntrack --ctstate NEW -m comment --comment new")
	s.add(chainEnter, "-g %s", chainAdmit)
	s.add(chainAdmit, "%s", s.remember(SetMet, peerIn))
	s.add(chainAdmit, "%s", s.mark())
}

// arrive looks at what is delivered to this host, after all that other tables have made of it.
func (s *script) arrive() {
	s.add(chainArrive, "-i lo -j RETURN")
	s.trusted(chainArrive, "-i")
	s.handed("-p udp", "-p tcp -m tcp --tcp-flags SYN,ACK SYN")
	s.targets(chainArrive, daddrEnd, dportEnd, "-g "+chainArrived+there)
	s.guarded(chainArrive, dportEnd, "-g "+chainArrived)
}

// handed drops what was handed to a socket, see handedRules. No cgroup has the number.
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

// admitted lets pass what belongs to a flow that the guard has admitted, and what begins one that
// it admits. The mark alone does not say that door has let the beginning of a flow pass: another
// tool may have set it since. But what arrived for a guarded port was at door.
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

// portsAt are the ports that are guarded at a place.
func (s *script) portsAt(p place) []service.Ports {
	if p.suffix == "" {
		return s.r.Guarded
	}
	all := guard.Spec{Targets: s.r.Targets}
	return all.EveryPort()
}
