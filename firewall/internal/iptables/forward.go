package iptables

import (
	"fmt"
	"slices"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// Forwarded ports. The rules are those of the nftables guard: see leadRules, maskRules, ledAwayRules and ledHereRules
// in package nftables.

// led is the link of an element for a flow that is led on; no interface has that number.
const led = 1 << 31

// withLed adds to the leases those that the way back of a led flow needs if its sessions end with the grant: no table
// has a chain of ours after source translation, so rules see the port that the flow was led to.
func (b *Backend) withLed(ls []guard.Lease) []guard.Lease {
	var more []guard.Lease
	for _, l := range guard.Legs(b.Spec.Forwards) {
		if !service.Covers(b.Spec.Cut, l.Proto, l.Port) {
			continue
		}
		for _, lease := range ls {
			e := lease.Element
			if e.To.IsValid() || e.Link != 0 || e.Bits != 0 || e.Proto != l.Proto || e.Port != l.Port {
				continue
			}
			if !l.Here() && l.To.Addr().Is6() != e.Source.Is6() {
				continue
			}
			lease.Link, lease.To, lease.Port = led, l.To.Addr(), l.To.Port()
			more = append(more, lease)
		}
	}
	return slices.Concat(ls, more)
}

// canCut refuses two ports whose sessions end with their grants and that lead to one place: the end of one grant would
// silence the server in the other's sessions, because withLed cannot tell the two apart.
func canCut(c *guard.Spec) error {
	led := make(map[guard.Leg]bool)
	for _, l := range guard.Legs(c.Forwards) {
		if !service.Covers(c.Cut, l.Proto, l.Port) {
			continue
		}
		place := guard.Leg{Proto: l.Proto, To: l.To}
		if led[place] {
			return fmt.Errorf(`iptables cannot end sessions with their grants where two ports lead to %s: set `+
				`firewall.backend = "nftables", or on_expiry = "keep" in one of the services`, l.Place())
		}
		led[place] = true
	}
	return nil
}

// legs returns the ports that lead elsewhere in this family.
func (s *script) legs() []guard.Leg {
	return slices.DeleteFunc(guard.Legs(s.r.Forwards), func(l guard.Leg) bool { return !l.Here() && !s.ours(l.To.Addr()) })
}

// lead leads new flows from sources with a grant for a forwarded port on.
func (s *script) lead() {
	for _, l := range s.legs() {
		to := fmt.Sprintf("-p %v -m %[1]v --dport %d -m addrtype --dst-type LOCAL", l.Proto, l.Port)
		dnat := "-j DNAT --to-destination :" + fmt.Sprint(l.To.Port())
		if !l.Here() {
			dnat = "-j DNAT --to-destination " + l.To.String()
		}
		s.add(chainLead, "%s %s %s", to, s.in(SetGrants, "src,dst"), dnat)
		if s.v6 && l.Here() { // no router forwards a packet from a link-local address
			s.add(chainLead, "%s %s %s", to, s.near(nearIn, linkIn), dnat)
		}
	}
}

// mask masquerades flows to a machine.
func (s *script) mask() {
	for _, l := range s.legs() {
		if l.Masquerade && !l.Here() {
			s.add(chainMask, "%s -j MASQUERADE", s.ledIn(l))
		}
	}
}

// ledIn matches packets from the client of a flow that lead has led on, ledOut those from its server.
func (s *script) ledIn(l guard.Leg) string { return s.led(l, daddrEnd, dportEnd, "ORIGINAL") }

func (s *script) ledOut(l guard.Leg) string { return s.led(l, saddrEnd, sportEnd, "REPLY") }

func (s *script) led(l guard.Leg, addr, end, direction string) string {
	at := ""
	if !l.Here() {
		at = fmt.Sprintf("%s %s ", addr, l.To.Addr())
	}
	return fmt.Sprintf("%s-p %v -m %[2]v --%s %d -m conntrack --ctdir %s --ctstate DNAT --ctorigdstport %d %s", at,
		l.Proto, end, l.To.Port(), direction, l.Port, s.marked())
}

// ledAway passes the flows that lead has led to a machine.
func (s *script) ledAway() {
	for _, l := range s.legs() {
		if l.Here() {
			continue
		}
		if l.Proto == service.UDP {
			s.add(chainPassing, "%s %s", s.ledIn(l), s.addTo(SetMet, peerIn))
		}
		s.add(chainPassing, "%s -j RETURN", s.ledIn(l))
	}
	s.ledBack(chainPassing, func(l guard.Leg) bool { return !l.Here() })
	for _, l := range s.legs() {
		if !l.Here() {
			s.add(chainPassing, "%s -j RETURN", s.ledOut(l))
		}
	}
}

// ledBack drops what the servers of some led flows send once the grant has ended, if their sessions end with it.
func (s *script) ledBack(chain string, some func(guard.Leg) bool) {
	for _, l := range s.legs() {
		if !some(l) || !service.Covers(s.r.Cut, l.Proto, l.Port) {
			continue
		}
		granted := s.notIn(setLedTo, "dst,src,src")
		if l.Here() {
			granted = s.notIn(setLed, "dst,src")
		}
		if l.Proto == service.TCP { // a reset reports to the client that the session is over
			granted += " -m tcp ! --tcp-flags RST RST"
		}
		s.add(chain, "%s %s -j DROP", s.ledOut(l), granted)
	}
}

// ledHere drops packets that would begin a flow with a program here on a forwarded port, and remembers the peers that
// were led to another UDP port.
func (s *script) ledHere() {
	for _, f := range s.r.Forwards {
		for _, p := range f.Ports {
			begins := "-m tcp --tcp-flags SYN,ACK SYN"
			if p.Proto == service.UDP {
				begins = "-m conntrack --ctstate INVALID,NEW,RELATED,UNTRACKED"
			}
			s.add(chainArrive, "%s%s %s -j DROP", hasPort(p, dportEnd), s.trial(p.Proto, dportEnd), begins)
		}
	}
	for _, l := range s.legs() {
		if l.Here() && l.Proto == service.UDP {
			s.add(chainArrive, "%s %s", s.ledIn(l), s.addTo(SetMet, peerIn))
		}
	}
}

// change returns the input for iptables-restore that makes a table match the script. In table nat there is nothing of
// ours unless ports are forwarded.
func (s *script) change(t table, was *saved) string {
	switch {
	case t.name != natTable || len(s.r.Forwards) > 0:
		return s.Restore(t, was)
	case was.present():
		return unload(t, was)
	}
	return ""
}

// stands reports whether the tables match the script: see saved.holds.
func (s *script) stands(now [3]*saved) bool {
	for i, t := range Tables() {
		if t.name == natTable && len(s.r.Forwards) == 0 {
			if now[i].present() {
				return false
			}
			continue
		}
		if !now[i].holds(t, s) {
			return false
		}
	}
	return true
}

// explainForward adds to the error of a load what forwarded ports need of iptables and the kernel. It is not tried
// before, because that would start connection tracking: see Bare.
func (r *GuardRules) explainForward(err error) error {
	if len(r.Forwards) == 0 {
		return err
	}
	return fmt.Errorf("%w (forwarded ports need the table nat, with the targets DNAT and MASQUERADE)", err)
}
