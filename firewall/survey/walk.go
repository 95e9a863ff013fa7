package survey

import (
	"net/netip"
)

// ways is a set of what may happen to a packet in a chain.
type ways uint8

const (
	accepted ways = 1 << iota
	dropped
	returned // to the calling chain
	onward   // to the next rule
)

// maxSteps bounds the number of rules weighed for one packet. Rule sets that lead through the same chains again and
// again could otherwise take for ever.
const maxSteps = 1 << 18

// trackedFrom is the priority after which connection tracking has seen a packet (NF_IP_PRI_CONNTRACK of
// linux/netfilter_ipv4.h).
const trackedFrom = -200

// ruleWalk is a packet's way through one base chain.
type ruleWalk struct {
	p      *passage
	base   *chain
	first  Place // the first place that drops it, or may
	answer Answer
	found  bool
	accept spot // the last rule that accepts it
}

// Judge returns what the rules do with a packet. Its interface must be one of r.Links.
func (r *Ruleset) Judge(packet Packet) Outcome {
	p := r.passage(packet)
	var o Outcome
	for _, h := range []hook{ingress, prerouting, input} {
		if p.arrive(h, &o); o.Verdict == Drops {
			break
		}
	}
	if o.Verdict == Drops && (p.redirect == maybe || p.mangled) {
		o.Verdict = Perhaps
	}
	o.Sources, o.Redirected = p.sources, p.redirect != no
	o.Untracked, o.Notrack = [...]Verdict{no: Passes, maybe: Perhaps, yes: Drops}[p.untracked], p.notrack
	if !p.local {
		o.Forwarded = netip.AddrPortFrom(p.packet.To, p.packet.Port)
	}
	return o
}

// passage returns a packet that has not met a rule yet.
func (r *Ruleset) passage(packet Packet) *passage {
	p := &passage{packet: packet, rules: r, markKnown: yes}
	for _, l := range r.Links {
		if l.Name == packet.In {
			p.link = l
		}
	}
	p.heads()
	return p
}

// heads records whether the packet is for this host now, and otherwise by which interface it leaves.
func (p *passage) heads() {
	p.local, p.out = isLocal(p.rules.Links, p.packet.To.WithZone("")), ""
	if l, ok := linkOf(p.rules.Links, p.packet.To); ok && !p.local {
		p.out = l.Name
	}
}

// arrive leads the packet through a hook. A packet for another machine goes through forward instead of input.
func (p *passage) arrive(h hook, o *Outcome) {
	if p.hook = h; h == input && !p.local {
		p.hook = forward
	}
	p.through(o)
}

// AtIngress returns what happens to a packet before anything but the driver has seen it.
func (r *Ruleset) AtIngress(packet Packet) Outcome {
	some := *r
	some.bases = nil
	for _, c := range r.bases {
		if c.hook == ingress {
			some.bases = append(some.bases, c)
		}
	}
	return some.Judge(packet)
}

// through leads the packet through all base chains of its hook.
func (p *passage) through(o *Outcome) {
	for _, base := range p.rules.bases {
		if !base.concerns(p) || base.table.ours() {
			continue
		}
		p.tracking = p.hook != ingress && (p.hook != prerouting || base.priority > trackedFrom)
		p.reached = yes
		w := &ruleWalk{p: p, base: base}
		found := w.basic()
		if found&dropped == 0 {
			if w.accept.rule != nil {
				o.accepts = append(o.accepts, w.accept)
			}
			continue
		}
		if found == dropped {
			o.Verdict, o.At, o.Answer = Drops, w.first, w.answer
			return
		}
		if o.Verdict == Passes {
			o.Verdict, o.At, o.Answer = Perhaps, w.first, w.answer
		}
	}
}

// basic walks the base chain and its policy.
func (w *ruleWalk) basic() ways {
	found := w.chain(w.base, 0)
	if found&returned == 0 {
		return found
	}
	found &^= returned
	if w.base.drop {
		w.drops(spot{w.base, nil, w.base}, Silence)
		return found | dropped
	}
	return found | accepted
}

// maxDepth is a little more than how deep the kernel lets chains call each other (NFT_JUMP_STACK_SIZE).
const maxDepth = 20

// chain returns the ways out of a chain.
func (w *ruleWalk) chain(c *chain, depth int) ways {
	if depth > maxDepth {
		return w.giveUp(c)
	}
	var found ways
	for _, r := range c.rules {
		w.p.steps++
		if w.p.steps > maxSteps {
			return w.giveUp(c)
		}
		w.p.here = spot{c, r, w.base}
		way := w.rule(c, r, depth)
		found |= way &^ onward
		if way&onward == 0 {
			return found
		}
	}
	return found | returned
}

// giveUp ends a walk that has become too long: everything is possible.
func (w *ruleWalk) giveUp(c *chain) ways {
	w.drops(spot{c, nil, w.base}, Silence)
	return accepted | dropped | returned
}

// rule returns the ways that one rule leads.
func (w *ruleWalk) rule(c *chain, r rule, depth int) ways {
	here, reached := w.p.here, w.p.reached
	ruling := r.weigh(w.p)
	if len(ruling.verdicts) == 0 {
		return onward
	}
	if !ruling.sure {
		w.p.reached = maybe
	}
	var found ways
	for _, v := range ruling.verdicts {
		found |= w.obey(c, here, v, depth)
	}
	if w.p.reached = maybe; found&^onward == 0 {
		w.p.reached = reached
	}
	if !ruling.sure {
		found |= onward
	}
	return found
}

func (w *ruleWalk) obey(c *chain, here spot, v verdict, depth int) ways {
	switch v.action {
	case accepts:
		w.accept = here
		return accepted
	case drops:
		w.drops(here, v.answer)
		return dropped
	case returns:
		return returned
	case jumps, goes:
		return w.lead(c, here, v, depth)
	case anything:
		w.drops(here, Silence)
		return accepted | dropped | onward
	}
	return onward
}

// lead follows a jump or a goto.
func (w *ruleWalk) lead(c *chain, here spot, v verdict, depth int) ways {
	next := c.table.chains[v.chain]
	if next == nil { // an unknown target that is not a chain
		w.drops(here, Silence)
		return accepted | dropped | onward
	}
	found := w.chain(next, depth+1)
	if v.action == jumps && found&returned != 0 {
		found = found&^returned | onward
	}
	return found
}

// drops records the first place that drops the packet.
func (w *ruleWalk) drops(at spot, answer Answer) {
	if !w.found {
		w.first, w.answer, w.found = at.place(), answer, true
		w.first.bound = w.p.bound()
	}
}

// bound returns the packet's current destination: see Place.
func (p *passage) bound() netip.AddrPort {
	var to netip.Addr
	var port uint16
	if p.hook == forward {
		to = p.packet.To
	}
	if p.redirect == yes {
		port = p.packet.Port
	}
	return netip.AddrPortFrom(to, port)
}
