package iptables

// Bare is the guard without connection tracking, which begins as soon as a rule is prepared
// that asks for it, before the rules are in force. A server that goes on sending in a flow
// of a gap would in that moment make it one of its own. So where the guard is not whole,
// this one stands first, for the milliseconds in which the other is prepared: grants pass
// and what a first load carries, and all else of guarded ports waits.
func (r *GuardRules) Bare(v6 bool) *script {
	s := &script{r: r, v6: v6, lines: make(map[string][]string)}
	s.add(ChainGuard, "-i lo -j RETURN")
	s.trusted(ChainGuard, "-i")
	s.elsewhere()
	s.arrive()
	s.revive()
	s.targets(chainPassing, daddrEnd, dportEnd, "-g "+chainDoor+there)
	s.targets(chainPassing, saddrEnd, sportEnd, "-g "+chainBegun+there)
	for _, p := range places {
		s.add(chainArrived+p.suffix, "-g %s", chainDoor+p.suffix)
		s.barePasses(chainDoor+p.suffix, p, p.in, flowIn, peerIn, nearIn, linkIn)
		s.barePasses(chainBegun+p.suffix, p, p.out, flowOut, peerOut, nearOut, linkOut)
	}
	return s
}

// barePasses lets pass in one direction what has a grant or is carried.
func (s *script) barePasses(chain string, p place, grant, flow, peer, near, link string) {
	s.add(chain, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN %s -j RETURN", s.carried(flow, peer))
	s.add(chain, "-p udp %s -j RETURN", s.carried(flow, peer))
	s.add(chain, "%s -j RETURN", s.in(p.grants, grant))
	if s.v6 && p.suffix == "" {
		s.add(chain, "%s -j RETURN", s.near(near, link))
	}
	s.add(chain, "-j DROP")
}
