// Package server is the gateway: it takes packets from the sniffer to the firewall.
//
// The path of a packet is one function, [Server.handle]. Around it are: what is opened before privileges are dropped
// (open.go), the loop and what runs beside it (run.go), client files that change (clients.go), the bundles of a fleet
// (bundle.go), gateways with one address (shared.go, elsewhere.go), and the control socket (control.go): what the
// server knows (status.go), decides (package feed), revokes (revoke.go) and reloads (reload.go). For captured packets
// inspect.go reports what it would have decided.
package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/action"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/policy"
	"sallyport/spa/replay"
)

// handle takes one packet from bytes to a decision. Each step either learns something about the packet or ends its
// path with a reason. Checks are in order of their cost. Nothing is remembered before the packet authenticates, and
// nothing is done before it is spent.
func (s *Server) handle(ctx context.Context, p capture.Packet) audit.Event {
	now := s.now()
	from := p.From.Addr()
	event := audit.Event{Time: now, From: p.From}

	knock, err := s.opener.Open(p.Data, &s.identity, s.clients, now)
	if err != nil {
		return event.As(audit.Unopened, err)
	}
	event = event.Of(knock) // valid until the next packet, like everything of one that is not spent

	if err := s.opener.CheckFrame(knock, p.Frame); err != nil {
		return event.As(audit.Unopened, err)
	}
	if s.tooFar(knock, now) {
		return event.As(audit.Unopened, &spa.Refused{Err: spa.ErrStale, Client: knock.Client, Time: knock.Time})
	}
	if err := s.policy.Source(knock, from); err != nil {
		event.Copied = errors.Is(err, policy.ErrStated)
		return event.As(audit.Elsewhere, err)
	}
	admitted, err := s.journal.Admit(entry(knock, from), now)
	if first, ok := s.checks.again(p, event); ok && errors.Is(err, replay.ErrSpent) {
		return s.recheck(event, first)
	}
	if err != nil && !errors.Is(err, replay.ErrReused) {
		event.Copied, event.Fault = errors.Is(err, replay.ErrSpentElsewhere), !replay.IsRefusal(err)
		return event.As(audit.Unspent, err)
	}

	// From here on the packet is spent: every decision is remembered, answered and recorded, even if the server is being
	// stopped.
	ctx = context.WithoutCancel(ctx)
	taken := asSpent(event, admitted, err)
	if s.shared.member != nil && knock.Client.Fleet { // other gateways must know it first
		return s.spendForAll(p, taken)
	}
	return s.decide(ctx, p, taken)
}

// spent is a packet that the journal has admitted.
type spent struct {
	event    audit.Event
	admitted replay.Admission
	reused   error       // its request id is that of another request
	alive    func() bool // whether the gateway may still grant it; nil: it may
}

// asSpent returns a packet that the journal has admitted. Its knock states the first stamp that the journal knows.
func asSpent(event audit.Event, admitted replay.Admission, reused error) spent {
	knock := event.Knock.Clone()
	knock.First = admitted.First
	return spent{event: event.Of(knock), admitted: admitted, reused: reused}
}

// decide is the rest of handle: what becomes of a packet that is spent.
func (s *Server) decide(ctx context.Context, p capture.Packet, spent spent) audit.Event {
	event, admitted := spent.event, spent.admitted
	knock, now := event.Knock, event.Time
	switch {
	case spent.reused != nil: // the id has another request's outcome, and keeps it
		return event.Answer(spa.Receipt{Status: spa.ReasonIDReused}).As(audit.Denied, spent.reused)
	case s.superseded(knock, p.From.Addr()):
		return s.supersede(event)
	case admitted.Outcome != nil:
		return s.repeat(event, admitted.Outcome)
	case knock.Type == spa.TypeClose:
		return s.closeGrants(ctx, event)
	}

	grants, err := s.policy.Authorize(knock, source(p), admitted.At, now)
	if err != nil {
		return s.refuse(event, audit.Denied, reasonFor(err), err)
	}
	if err := s.firewall.MayLetIn(grants); err != nil {
		return s.ungranted(event, err)
	}
	programs, err := s.actions.Reserve(begins(grants))
	if err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonNoProgram, err)
	}
	if err := s.takeUse(&event, admitted.Retry); err != nil {
		s.actions.Cancel(programs)
		return s.refuse(event, audit.Denied, spa.ReasonNoUses, err)
	}
	if err := s.grant(ctx, grants, now, spent.alive); err != nil {
		s.actions.Cancel(programs)
		return s.ungranted(event, err)
	}
	s.actions.Commit(programs)
	return s.conclude(event, audit.Granted, granted(s.config, knock.LetIn, grants, programs, now))
}

// ungranted refuses what the firewall did not do.
func (s *Server) ungranted(event audit.Event, err error) audit.Event {
	if errors.Is(err, firewall.ErrOwn) {
		return s.refuse(event, audit.Denied, spa.ReasonNetwork, err)
	}
	return s.refuse(event, audit.Failed, spa.ReasonFailed, err)
}

// closeGrants ends the client's own grants of the services that let in the address that it knocks from, or any address
// of the network that it names.
func (s *Server) closeGrants(ctx context.Context, event audit.Event) audit.Event {
	k := event.Knock
	if err := s.policy.Closable(k, event.Time); err != nil {
		return s.refuse(event, audit.Denied, reasonFor(err), err)
	}
	if err := s.closed(event); err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonFailed, err)
	}
	of := reach(event)
	match := firewall.Match{Client: k.Client.Name, Source: of.Addr(), Services: s.closing(event)}
	if !of.IsSingleIP() {
		match.Bits = uint8(of.Bits())
	}
	ended, err := s.firewall.Revoke(ctx, match, event.Time)
	if err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonFailed, err)
	}
	s.feed.Closed(ended)
	closed := make([]spa.Granting, len(k.Services))
	for i, service := range k.Services {
		closed[i] = spa.Granting{Ports: s.policy.Ports(service)}
	}
	return s.conclude(event, audit.Closed, spa.Receipt{Status: spa.Closed, Services: closed})
}

// closing returns the names of the grants that a close ends: the requested services, and the client's other grants
// whose ports are all among theirs. A grant opened as ssh is also closed as tcp/22.
func (s *Server) closing(event audit.Event) []string {
	return s.endedBy(event.Knock.Client.Name, event.Knock.Services, reach(event), event.Time)
}

// endedBy returns the names of the grants that a close of services ends, for a network or address.
func (s *Server) endedBy(client string, services []service.Service, of netip.Prefix, now time.Time) []string {
	var within, beyond []string
	for _, g := range s.firewall.GrantsOf(client, now) { // one of many ranges comes in parts
		switch {
		case of.IsValid() && !g.Network().Overlaps(of):
		case s.policy.Within(g, services):
			within = append(within, g.Service)
		default:
			beyond = append(beyond, g.Service)
		}
	}
	within = slices.DeleteFunc(within, func(service string) bool { return slices.Contains(beyond, service) })
	return append(service.Names(services), within...)
}

// repeat answers a retry as its command was first answered, and does nothing else. If its grant has ended since, the
// answer reports that.
func (s *Server) repeat(event audit.Event, outcome []byte) audit.Event {
	receipt, err := spa.ParseReceipt(outcome)
	if err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonFailed, fmt.Errorf("the journal's outcome: %w", err))
	}
	held := false
	if event.Receipt, held = s.asHeld(event, receipt); !held {
		return s.refuse(event, audit.Denied, spa.ReasonSuperseded, errSuperseded)
	}
	return event.As(audit.Repeated, nil)
}

// asHeld returns the first receipt of an event as it reads now: nothing is open for longer than the client holds it,
// which another gateway of the site may have granted for longer. It returns false if the client has lost any of it.
func (s *Server) asHeld(event audit.Event, first spa.Receipt) (spa.Receipt, bool) {
	receipt := later(first, event.Time)
	held := s.firewall.GrantsOf(event.Client, event.Time)
	for i, service := range service.Names(event.Knock.Services) {
		if i >= len(receipt.Services) || receipt.Services[i].For == 0 {
			continue // refused, closed, or over
		}
		holds := false
		for _, g := range held {
			if g.Service == service && g.Network() == letIn(receipt) {
				holds = true
				receipt.Services[i].For = min(receipt.Services[i].For, g.Until.Sub(event.Time))
			}
		}
		if !holds {
			return spa.Receipt{}, false
		}
	}
	return receipt, true
}

// later returns the receipt as it reads at a later time: no grant lasts longer because of it, even if the clock was
// set back.
func later(r spa.Receipt, now time.Time) spa.Receipt {
	passed := max(0, now.Sub(r.Time))
	services := make([]spa.Granting, len(r.Services))
	for i, service := range r.Services {
		service.For = max(0, service.For-passed)
		services[i] = service
	}
	r.Services, r.Time = services, now
	return r
}

// refuse concludes a spent packet with a reason instead of a grant.
func (s *Server) refuse(event audit.Event, v audit.Verdict, reason spa.Status, err error) audit.Event {
	event.Err = err
	return s.conclude(event, v, spa.Receipt{Status: reason})
}

// conclude records the outcome in the journal before anyone learns it.
func (s *Server) conclude(event audit.Event, v audit.Verdict, receipt spa.Receipt) audit.Event {
	event = event.Answer(receipt)
	outcome, err := event.Receipt.AppendBinary(nil)
	if err == nil {
		err = s.journal.Settle(uint64(event.Knock.KeyID), event.Knock.Request.ID, outcome)
	}
	if err != nil {
		// The packet is spent and can open nothing more; only a retry would be decided again.
		s.log.Error("could not record the outcome of a request: a retry of it is decided again", "client",
			event.Client, "error", err)
	}
	return event.As(v, event.Err)
}

// answer sends the receipt of a spent packet to its sender, or the response to the STUN request that carried it.
func (s *Server) answer(c *config.Config, p capture.Packet, event audit.Event) {
	if s.responder == nil {
		return
	}
	var packet []byte
	var err error
	if p.Frame != nil {
		packet = event.Knock.Respond(p.Frame, p.From, event.Receipt.Status)
	} else {
		packet, err = spa.SealReceipt(event.Receipt, event.Knock, s.identity.ServerFor(event.Knock.Client))
	}
	if err == nil {
		// On a shared port a receipt must be distinguishable from what the host's own program sends.
		shared := slices.Contains(c.KnockPorts, config.KnockPort{Port: p.To.Port(), Shared: true})
		err = s.responder.Send(p, packet, shared)
	}
	if err != nil && event.Verdict != audit.Rechecked { // a browser repeats its check, and anyone can repeat a copy
		s.log.Warn("could not send a receipt", "client", event.Client, "to", p.From.String(), "error", err)
	}
}

// reach returns what a request names: a network or address, or that of its sender.
func reach(event audit.Event) netip.Prefix {
	if event.Knock.LetIn.IsValid() {
		return event.Knock.LetIn
	}
	from := event.From.Addr()
	return netip.PrefixFrom(from, from.BitLen())
}

// letIn returns whom a receipt lets in.
func letIn(r spa.Receipt) netip.Prefix {
	if r.LetIn.IsValid() {
		return r.LetIn
	}
	return netip.PrefixFrom(r.Source, r.Source.BitLen())
}

// source returns the address that a grant is for. A link-local one has the index of its interface as its zone: it is
// another machine on every link.
func source(p capture.Packet) netip.Addr {
	from := p.From.Addr()
	if !from.IsLinkLocalUnicast() {
		return from
	}
	return from.WithZone(strconv.Itoa(p.Interface))
}

// entry returns what the replay memory keeps of a knock.
func entry(k *spa.Knock, from netip.Addr) replay.Entry {
	return replay.Entry{
		Key:     uint64(k.KeyID),
		Nonce:   k.Nonce,
		Request: k.Request.ID,
		Digest:  k.Request.Digest(),
		Stamp:   k.Time,
		First:   k.First,
		From:    from,
	}
}

// granted returns the receipt for grants of what the request named, and for the programs that they start.
func granted(c *config.Config, letIn netip.Prefix, grants []firewall.Grant, programs *action.Reservation,
	now time.Time) spa.Receipt {
	services := make([]spa.Granting, len(grants))
	for i, g := range grants {
		services[i] = spa.Granting{For: g.Until.Sub(now), Ports: g.Ports, Started: programs.Starts(g.Service),
			Once: c.Once(g.Ports)}
	}
	return spa.Receipt{Status: spa.Granted, Services: services, LetIn: letIn}
}

// reasonFor returns the reason that the client gets for a denial.
func reasonFor(err error) spa.Status {
	if denial, ok := errors.AsType[*policy.Denial](err); ok {
		return denial.Reason
	}
	return spa.ReasonFailed
}

var _ spa.Clients = (*keys.Registry)(nil)
