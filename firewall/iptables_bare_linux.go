package firewall

import "fmt"

// bare is the guard without connection tracking, which begins as soon as a rule is prepared
// that asks for it, before the rules are in force. A server that goes on sending in a flow
// of a gap would in that moment make it one of its own. So where the guard is not whole,
// this one stands first, for the milliseconds in which the other is prepared: grants pass
// and what a first load carries, and all else of guarded ports waits.
func (r *guardRules) bare(v6 bool) *script {
	s := &script{r: r, v6: v6, lines: make(map[string][]string)}
	s.add(chainGuard, "-i lo -j RETURN")
	s.add(chainRevive, "-o lo -j RETURN")
	for _, name := range r.Trusted {
		s.add(chainGuard, "-i %s -j RETURN", name)
		s.add(chainRevive, "-o %s -j RETURN", name)
	}
	s.forThisHost()
	s.ports(chainHere, "dport", chainDoor, chainDoor)
	s.ports(chainRevive, "sport", chainSpeak, chainSpeak)
	for chain, ends := range map[string][2]string{chainDoor: {"src,src,dst", "src,dst"}, chainSpeak: {"dst,dst,src", "dst,src"}} {
		carried := fmt.Sprintf("-m set --match-set %s %s -m set --match-set %s %s -j RETURN", s.set(setFlows), ends[0], s.set(setPeers), ends[1])
		s.add(chain, "-p tcp -m tcp ! --tcp-flags SYN,ACK SYN %s", carried)
		s.add(chain, "-p udp %s", carried)
		s.add(chain, "-m set --match-set %s %s -j RETURN", s.set(setGrants), ends[1])
	}
	s.add(chainDoor, "-j DROP")
	s.add(chainSpeak, "-j DROP")
	return s
}
