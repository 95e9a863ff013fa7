package iptables

// Bare is the guard without connection tracking, which starts as soon as the kernel prepares a rule that uses it,
// before the rules are in force. If a server kept sending in a flow from the time without a guard, it would begin a
// flow in that moment. So if the guard is not complete, this one goes first, for the milliseconds that preparing the
// full one takes: it passes grants and carried flows, and drops everything else on guarded ports.
func (r *GuardRules) Bare(v6 bool) *script {
	without := *r
	without.Forwards = nil // they need connection tracking
	s := &script{r: &without, v6: v6, lines: make(map[string][]string)}
	s.add(ChainGuard, "-i lo -j RETURN")
	s.trusted(ChainGuard, "-i")
	s.elsewhere()
	s.arrive()
	s.revive()
	s.targets(chainPassing, daddrEnd, dportEnd, "-g "+chainDoor+there)
	s.targets(chainPassing, saddrEnd, sportEnd, "-g "+chainBegun+there)
	for _, f := range r.Forwards {
		for _, p := range f.Ports { // not for a program here
			s.add(chainDoor, "%s -j DROP", hasPort(p, dportEnd))
		}
	}
	for _, p := range places {
		s.add(chainArrived+p.suffix, "-g %s", chainDoor+p.suffix)
		s.barePasses(chainDoor+p.suffix, p, s.granted(p), flowIn, peerIn, nearIn, linkIn)
		s.barePasses(chainBegun+p.suffix, p, s.grantedOut(p), flowOut, peerOut, nearOut, linkOut)
	}
	return s
}

// barePasses passes packets in one direction that have a grant or are carried, and drops the rest.
func (s *script) barePasses(chain string, p place, granted []string, flow, peer, near, link string) {
	s.add(chain, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN %s -j RETURN", s.carried(flow, peer))
	s.add(chain, "-p udp %s -j RETURN", s.carried(flow, peer))
	for _, has := range granted {
		s.add(chain, "%s -j RETURN", has)
	}
	if s.v6 && p.suffix == "" {
		s.add(chain, "%s -j RETURN", s.near(near, link))
	}
	s.add(chain, "-j DROP")
}
