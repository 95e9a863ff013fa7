// Package server is the gateway: it takes packets from the sniffer to the firewall.
//
// The path of a packet is one function, [Server.handle]. Around it: what has to be opened before
// privileges are dropped (open.go), the loop and what runs beside it (run.go), the client files that
// change while it runs (clients.go), and what is asked and told on its socket (control.go): what it
// knows (status.go), what it decides (package feed), what is ended (revoke.go), and all files taken over
// at once (reload.go). Of packets that were captured it says what it would have decided (inspect.go).
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
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/policy"
	"sallyport/spa/replay"
)

// handle takes one packet from bytes to a decision. Each step either adds to what is known about
// the packet or ends its path with the reason. The checks stand in order of their cost; nothing is
// remembered before the packet authenticates, and nothing is done before it is spent.
func (s *Server) handle(ctx context.Context, p capture.Packet) audit.Event {
	now := s.now()
	from := p.From.Addr()
	event := audit.Event{Time: now, From: p.From}

	opened, err := spa.Open(p.Data, &s.identity, s.clients, now)
	if err != nil {
		return event.As(audit.Unopened, err)
	}
	knock := opened // on the heap from here on, and not for noise
	event = event.Of(&knock)

	if err := s.policy.Source(&knock, from); err != nil {
		event.Copied = errors.Is(err, policy.ErrStated)
		return event.As(audit.Elsewhere, err)
	}
	admitted, err := s.journal.Admit(entry(&knock, from), now)
	if err != nil && !errors.Is(err, replay.ErrReused) {
		event.Copied = errors.Is(err, replay.ErrSpentElsewhere)
		return event.As(audit.Unspent, err)
	}

	// From here on the packet is spent: whatever is decided is remembered, answered and recorded, also
	// when the server is asked to stop meanwhile.
	ctx = context.WithoutCancel(ctx)
	switch {
	case err != nil: // what the id stands for is another request's outcome, and stays that
		return event.Answer(spa.Receipt{Status: spa.ReasonIDReused}).As(audit.Denied, err)
	case s.superseded(&knock, from, admitted.First):
		return s.supersede(event)
	case admitted.Outcome != nil:
		return s.repeat(event, admitted.Outcome)
	case knock.Type == spa.TypeClose:
		return s.closeGrants(ctx, event)
	}

	grants, err := s.policy.Authorize(&knock, source(p), admitted.At, now)
	if err != nil {
		return s.refuse(event, audit.Denied, reasonFor(err), err)
	}
	if err := s.firewall.Grant(ctx, grants, now); err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonFailed, err)
	}
	return s.conclude(event, audit.Granted, granted(grants, now))
}

// closeGrants ends the client's own grants of the services for the address that it knocks from.
func (s *Server) closeGrants(ctx context.Context, event audit.Event) audit.Event {
	k := event.Knock
	if err := s.policy.Closable(k, event.Time); err != nil {
		return s.refuse(event, audit.Denied, reasonFor(err), err)
	}
	if err := s.closed(k); err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonFailed, err)
	}
	match := firewall.Match{Client: k.Client.Name, Source: event.From.Addr(), Services: s.closing(event)}
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

// closing returns the names under which the client may hold what it wants closed: the services as
// it asks for them, and others of its grants that have no port but theirs. What was opened as ssh
// is closed as tcp/22 too.
func (s *Server) closing(event audit.Event) []string {
	k := event.Knock
	var within, beyond []string
	for _, g := range s.firewall.GrantsOf(k.Client.Name, event.Time) { // one of many ranges comes in parts
		switch {
		case g.Source.WithZone("") != event.From.Addr():
		case s.policy.Within(g, k.Services):
			within = append(within, g.Service)
		default:
			beyond = append(beyond, g.Service)
		}
	}
	within = slices.DeleteFunc(within, func(service string) bool { return slices.Contains(beyond, service) })
	return append(service.Names(k.Services), within...)
}

// repeat answers another try of a command as its first was answered, and does nothing else. Where what
// was granted then has been ended since, it says that.
func (s *Server) repeat(event audit.Event, outcome []byte) audit.Event {
	receipt, err := spa.ParseReceipt(outcome)
	if err != nil {
		return s.refuse(event, audit.Failed, spa.ReasonFailed, fmt.Errorf("the journal's outcome: %w", err))
	}
	event.Receipt = later(receipt, event.Time)
	if !s.stillHeld(event) {
		return s.refuse(event, audit.Denied, spa.ReasonSuperseded, errSuperseded)
	}
	return event.As(audit.Repeated, nil)
}

// stillHeld reports whether the client holds what its receipt says to be open.
func (s *Server) stillHeld(event audit.Event) bool {
	held := s.firewall.GrantsOf(event.Client, event.Time)
	for i, service := range service.Names(event.Knock.Services) {
		if i >= len(event.Receipt.Services) || event.Receipt.Services[i].For == 0 {
			continue // refused, closed, or over
		}
		if !slices.ContainsFunc(held, func(g firewall.Grant) bool {
			return g.Service == service && g.Source.WithZone("") == event.Receipt.Source
		}) {
			return false
		}
	}
	return true
}

// later returns the receipt as it reads at a later time: what was granted lasts no longer for it, also
// by a clock that was set back since.
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

// conclude settles the outcome in the journal, before anyone is told of it.
func (s *Server) conclude(event audit.Event, v audit.Verdict, receipt spa.Receipt) audit.Event {
	event = event.Answer(receipt)
	outcome, err := event.Receipt.AppendBinary(nil)
	if err == nil {
		err = s.journal.Settle(uint64(event.Knock.KeyID), event.Knock.Request.ID, outcome)
	}
	if err != nil {
		// The packet is spent and nothing more can be opened with it; only a retry would be decided anew.
		s.log.Error("could not record the outcome of a request: a retry of it gets no answer", "client",
			event.Client, "error", err)
	}
	return event.As(v, event.Err)
}

// answer sends the receipt of a spent packet to where it came from.
func (s *Server) answer(c *config.Config, p capture.Packet, event audit.Event) {
	if s.responder == nil {
		return
	}
	packet, err := spa.SealReceipt(event.Receipt, event.Knock, s.identity.Server)
	if err == nil {
		// From a shared port a receipt has to be told from what the host's own program sends.
		shared := slices.Contains(c.KnockPorts, config.KnockPort{Port: p.To.Port(), Shared: true})
		err = s.responder.Send(p, packet, shared)
	}
	if err != nil {
		s.log.Warn("could not send a receipt", "client", event.Client, "to", p.From.String(), "error", err)
	}
}

// source is the address that a grant is for: a link-local one has the index of its interface as its
// zone, because it is another machine on every link.
func source(p capture.Packet) netip.Addr {
	from := p.From.Addr()
	if !from.IsLinkLocalUnicast() {
		return from
	}
	return from.WithZone(strconv.Itoa(p.Interface))
}

// entry is what the replay memory keeps of a knock.
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

// granted is the receipt of grants.
func granted(grants []firewall.Grant, now time.Time) spa.Receipt {
	services := make([]spa.Granting, len(grants))
	for i, g := range grants {
		services[i] = spa.Granting{For: g.Until.Sub(now), Ports: g.Ports}
	}
	return spa.Receipt{Status: spa.Granted, Services: services}
}

// reasonFor returns what the client is told of a denial.
func reasonFor(err error) spa.Status {
	if denial, ok := errors.AsType[*policy.Denial](err); ok {
		return denial.Reason
	}
	return spa.ReasonFailed
}

var _ spa.Clients = (*keys.Registry)(nil)
