package firewall

import (
	"fmt"
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// once reports whether one of the ports admits one flow only.
func (c *Config) once(ports []service.Ports) bool {
	return slices.ContainsFunc(ports, func(p service.Ports) bool {
		return slices.ContainsFunc(c.Once, func(o service.Ports) bool {
			return o.Proto == p.Proto && o.Low <= p.High && p.Low <= o.High
		})
	})
}

// staysOnce reports whether a holding is still for as few flows as when it was granted.
func (c *Config) staysOnce(h *ledger.Holding) bool {
	return !h.Once || !slices.ContainsFunc(h.Ports, func(p service.Ports) bool {
		for port := int(p.Low); port <= int(p.High); port++ {
			if !service.Covers(c.Once, p.Proto, uint16(port)) {
				return true
			}
		}
		return false
	})
}

// checkOnce refuses grants for one flow that would outlast what the kernel remembers.
func (c *Config) checkOnce(gs []Grant, now time.Time) error {
	for _, g := range gs {
		if c.once(g.Ports) && g.Bits > 0 {
			return fmt.Errorf("%v has many addresses, and the grant is for one connection", g.Network())
		}
		if c.once(g.Ports) && guard.Remaining(g.Until, now) > service.LongestOnce {
			return fmt.Errorf("a grant for one connection lasts at most %s", service.FormatDuration(service.LongestOnce))
		}
	}
	return nil
}

// newTurns lets the flows of changed grants come. If another grant is for the same element, its flow may come as well.
func (f *Firewall) newTurns(ls []guard.Lease, changes []ledger.Change) []guard.Lease {
	if len(f.cfg.Once) == 0 {
		return ls
	}
	besides := make(map[guard.Element]time.Time)
	for _, c := range changes {
		c.Each(func(e guard.Element) {
			besides[e] = f.held.Besides(e, c.Holding)
			if c.Until.Before(besides[e]) {
				besides[e] = c.Until
			}
		})
	}
	for i := range ls {
		ls[i].Turn, ls[i].Besides = guard.NewTurn, besides[ls[i].Element]
	}
	return ls
}

// noMore lets only one more flow come where a grant has ended and another has not.
func noMore(ls []guard.Lease) []guard.Lease {
	for i := range ls {
		ls[i].Turn = guard.NoMore
	}
	return ls
}

// withTaken marks the grants whose flow has come.
func (f *Firewall) withTaken(gs []Grant) []Grant {
	taken, err := f.taken()
	if err == nil && len(taken) == 0 {
		return gs
	}
	if err != nil {
		f.log.Warn("could not read which grants have admitted their connection", "error", err)
		return gs
	}
	came := make(map[guard.Element]bool, len(taken))
	for _, e := range taken {
		came[e] = true
	}
	for i := range gs {
		g := &gs[i]
		for _, h := range g.holdings() {
			h.Each(func(e guard.Element) { g.Taken = g.Taken || came[e] })
		}
	}
	return gs
}
