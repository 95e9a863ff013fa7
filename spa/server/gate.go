package server

import (
	"errors"
	"slices"
	"time"

	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/capture/gate"
	"sallyport/spa/replay"
	"sallyport/spa/server/control"
	"sallyport/spa/server/metrics"
)

// gated adds the gate to what is captured.
func (s *Server) gated(c capture.Config) capture.Config {
	c.Gate = capture.Gate{Mode: s.config.Capture.Gate, Keys: gateKeys(s.identity.Gates)}
	for _, port := range s.config.KnockPorts {
		if port.Shared {
			c.Gate.Shared = append(c.Gate.Shared, port.Port)
		}
	}
	return c
}

// gateKeys returns the keys of the tags.
func gateKeys(gates []spa.Gate) []gate.Key {
	var list []gate.Key
	for _, g := range gates {
		if g.Key.IsZero() {
			continue
		}
		k0, k1 := g.Key.Tag()
		list = append(list, gate.Key{K0: k0, K1: k1})
	}
	return list
}

// changeGateKeys gives the kernel the keys that are in force now.
func (s *Server) changeGateKeys() {
	if s.sniffer != nil {
		s.sniffer.SetGateKeys(gateKeys(s.identity.Gates))
	}
}

// noteCopy lets the kernel drop further copies of a packet. The first one from an address came here, and was counted
// for its client; the first one from another address than the packet itself has raised the alarm.
func (s *Server) noteCopy(p capture.Packet, err error) {
	if errors.Is(err, replay.ErrSpent) && s.sniffer != nil {
		s.sniffer.Copied(p, errors.Is(err, replay.ErrSpentElsewhere))
	}
}

// reportGate logs why the gate is not where the administrator wanted it. With "auto" nobody asked for it.
func (s *Server) reportGate() {
	state, wanted := s.sniffer.Gate(), s.config.Capture.Gate
	if len(state.Why) > 0 && wanted != "auto" {
		s.log.Warn("the kernel gate is not as capture.gate says", "gate", state.Mode, "wanted", wanted, "why", state.Why)
	}
}

// gateStatus reports whether a replaced gate key is still valid, and where tags are checked.
func (s *Server) gateStatus(gates []spa.Gate, now time.Time) control.Gate {
	state := s.sniffer.Gate()
	st := control.Gate{Kernel: state.Mode, XDP: state.XDP, Why: state.Why}
	for _, g := range gates {
		if !g.Until.IsZero() && now.Before(g.Until) {
			st.Previous, st.Until = true, g.Until
		}
	}
	return st
}

// received returns how many packets to the knock ports were seen, including those that the gate dropped. A classic
// filter does not count those of a wrong length.
func received(st capture.Stats) uint64 {
	return st.Received + st.Gate.Cut + st.Gate.Tag + st.Gate.Spent + st.Gate.Elsewhere
}

func gateDrops(c gate.Counts) control.GateDrops {
	return control.GateDrops{Length: c.Length, Cut: c.Cut, Tag: c.Tag, Spent: c.Spent, Elsewhere: c.Elsewhere, XDP: c.XDP}
}

// gateSample returns the gate's counts for the page.
func gateSample(where string, c control.GateDrops) metrics.Gate {
	return metrics.Gate{Kernel: where != "none", Dropped: map[string]uint64{
		"length": c.Length, "cut": c.Cut, "tag": c.Tag, "spent": c.Spent, "spent elsewhere": c.Elsewhere,
	}}
}

// refusedInKernel returns the refusals that the kernel made in place of the server.
func (s *Server) refusedInKernel() []audit.Count {
	c := s.sniffer.Stats().Gate
	return slices.DeleteFunc([]audit.Count{
		{Verdict: audit.Unopened, Reason: spa.ErrLength.Error(), Packets: c.Length},
		{Verdict: audit.Unopened, Reason: spa.ErrGate.Error(), Packets: c.Tag},
		{Verdict: audit.Unspent, Reason: replay.ErrSpent.Error(), Packets: c.Spent},
		{Verdict: audit.Unspent, Reason: replay.ErrSpentElsewhere.Error(), Packets: c.Elsewhere},
	}, func(c audit.Count) bool { return c.Packets == 0 })
}

// decided returns the counts of the audit log with those of the kernel.
func (s *Server) decided() map[string]uint64 {
	counts := s.audit.Counts()
	for _, c := range s.refusedInKernel() {
		counts[c.Verdict.String()+": "+c.Reason] += c.Packets
	}
	return counts
}

// tally is decided with the reasons of answers too.
func (s *Server) tally() []audit.Count {
	list := s.audit.Tally()
	for _, c := range s.refusedInKernel() {
		i := slices.IndexFunc(list, func(of audit.Count) bool { return of.Verdict == c.Verdict && of.Reason == c.Reason })
		if i < 0 {
			list = append(list, c)
			continue
		}
		list[i].Packets += c.Packets
	}
	return list
}
