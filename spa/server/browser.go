package server

import (
	"net/netip"

	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
)

// checks remembers what became of the packets that browsers sent last. A browser sends its packet again and again in
// connectivity checks, and each of them must be answered: with one answer alone, it does not take the connection for
// one. Only packets that a client's key made are kept, and of each client a few.
type checks struct {
	of map[string]*[keptChecks]check
}

// keptChecks is how many packets are remembered of a client: one for each address family, and those of the command
// before.
const keptChecks = 4

type check struct {
	nonce    spa.Nonce
	from, to netip.AddrPort
	receipt  spa.Receipt // what the first one was answered
}

// keep remembers the outcome of a spent packet that a browser sent.
func (c *checks) keep(p capture.Packet, e audit.Event) {
	if c.of == nil {
		c.of = make(map[string]*[keptChecks]check)
	}
	kept := c.of[e.Client]
	if kept == nil {
		kept = new([keptChecks]check)
		c.of[e.Client] = kept
	}
	copy(kept[1:], kept[:])
	kept[0] = check{e.Knock.Nonce, p.From, p.To, e.Receipt}
}

// again returns what a packet was answered that has arrived before, from the same address and port and to the same, in
// a STUN request that its client's key signed.
func (c *checks) again(p capture.Packet, e audit.Event) (spa.Receipt, bool) {
	kept := c.of[e.Client]
	if p.Frame == nil || kept == nil {
		return spa.Receipt{}, false
	}
	for _, k := range kept {
		if k.receipt.Status != 0 && k.nonce == e.Knock.Nonce && k.from == p.From && k.to == p.To {
			return k.receipt, true
		}
	}
	return spa.Receipt{}, false
}

// recheck answers a packet that has arrived before as it was answered first, unless the client has lost since what that
// opened. Nothing is recorded.
func (s *Server) recheck(event audit.Event, first spa.Receipt) audit.Event {
	var held bool
	if event.Receipt, held = s.asHeld(event, first); !held {
		event.Receipt = spa.Receipt{Status: spa.ReasonSuperseded}
	}
	return event.As(audit.Rechecked, nil)
}
