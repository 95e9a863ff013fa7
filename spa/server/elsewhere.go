package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
	"sallyport/spa/server/control"
)

// elsewhere is the server as its member of a site sees it: what the other members decided comes here.
type elsewhere struct {
	s      *Server
	member *member.Member
}

var _ member.Site = (*elsewhere)(nil)

// Install implements member.Site.
func (e *elsewhere) Install(text []byte) {
	o, err := share.ParseOutcome(text)
	if err != nil {
		e.s.log.Error("another gateway's outcome cannot be read: is it newer than this one?", "error", err)
		return
	}
	e.s.line.Lock()
	defer e.s.line.Unlock()
	e.s.noteOutcome(o)
	if !e.member.Alive() {
		return // another member may have answered a close meanwhile: the outcome comes again
	}
	e.s.install(context.Background(), o)
}

// install puts into force what another member granted, for the rest of its time, as far as this gateway's own settings
// and bundle grant it too. Programs do not run here: the member that granted it runs its own.
func (s *Server) install(ctx context.Context, o *share.Outcome) {
	now := s.now()
	knock, ends, ok := s.asked(o, now)
	if !ok || s.holds(knock, ends) || s.superseded(knock, o.From) {
		return
	}
	var grants []firewall.Grant
	err := s.policy.Source(knock, o.From)
	if err == nil {
		grants, err = s.policy.Authorize(knock, o.From, now, now)
	}
	for i, held := 0, s.firewall.GrantsOf(knock.Client.Name, now); i < len(grants); i++ {
		longer := func(g firewall.Grant) bool { // what it has for longer it keeps
			return g.Service == grants[i].Service && g.Peer() == grants[i].Peer() && !g.Until.Before(grants[i].Until)
		}
		if grants[i].Until.After(ends[i]) && !slices.ContainsFunc(held, longer) {
			grants[i].Until = ends[i]
		}
	}
	if err == nil {
		err = s.firewall.MayLetIn(grants)
	}
	if err == nil {
		err = s.firewall.Grant(ctx, grants, now)
	}
	if err != nil {
		s.log.Warn("not granted here: what another gateway of the site granted", "client", o.Client, "source", o.From,
			"services", o.Services, "error", err)
		return
	}
	s.feed.Expect(grants)
	s.seen.installed(knock.Client, grants)
	s.recordElsewhere("install", o.Client, o.From, []slog.Attr{slog.Any("services", service.Names(knock.Services)),
		slog.Any("until", ends)})
}

// asked returns the request of which this is the outcome as if it had come here, with the end of each service. It
// leaves out what has ended, and what only one connection may use. It returns false if nothing is left, or if the
// client is not one of the fleet here.
func (s *Server) asked(o *share.Outcome, now time.Time) (*spa.Knock, []time.Time, bool) {
	receipt, err := spa.ParseReceipt(o.Receipt)
	is, known := s.clients.Lookup(o.Key)
	switch {
	case err != nil || receipt.Status != spa.Granted || len(receipt.Services) != len(o.Services):
		return nil, nil, false
	case !known || !is.Client.Fleet || !is.Client.Revoked.IsZero() || !is.Good(now):
		return nil, nil, false
	case o.From.IsLinkLocalUnicast(): // another machine on every link
		return nil, nil, false
	}
	k := &spa.Knock{Client: &is.Client, KeyID: o.Key, Key: is.Key,
		Request: spa.Request{Type: spa.TypeOpen, Time: now, First: o.First, Source: o.From, LetIn: o.LetIn}}
	var ends []time.Time
	for i, granted := range receipt.Services {
		wanted, err := service.ParseService(o.Services[i])
		left := min(granted.For, receipt.Time.Add(granted.For).Sub(now))
		if err != nil || left <= 0 || s.config.Once(s.policy.Ports(wanted)) {
			continue
		}
		k.Services, ends = append(k.Services, wanted), append(ends, now.Add(left))
		k.For = max(k.For, left)
	}
	return k, ends, len(ends) > 0
}

// holds reports whether the client already holds all of this for as long, from the same request or a later one.
func (s *Server) holds(k *spa.Knock, ends []time.Time) bool {
	held := s.firewall.GrantsOf(k.Client.Name, s.now())
	for i, wanted := range k.Services {
		if !slices.ContainsFunc(held, func(g firewall.Grant) bool {
			return g.Service == wanted.String() && g.Network() == whom(k) && !g.Until.Before(ends[i]) &&
				!g.Asked.Before(k.First)
		}) {
			return false
		}
	}
	return true
}

func whom(k *spa.Knock) netip.Prefix {
	if k.LetIn.IsValid() {
		return k.LetIn
	}
	return netip.PrefixFrom(k.Source, k.Source.BitLen())
}

// Raise implements member.Site.
func (e *elsewhere) Raise(text []byte) error {
	s := e.s
	floor, err := share.ParseFloor(text)
	if err != nil {
		return fmt.Errorf("what another gateway ended cannot be read: is it newer than this one? %w", err)
	}
	s.line.Lock()
	cuttable, err := s.raise(context.Background(), floor, cutBy(text))
	s.line.Unlock()
	if !floor.Cut {
		return err
	}
	if _, failed := s.firewall.Cut(context.Background(), cuttable); failed != nil { // the grants have ended
		s.log.Error("could not end the sessions of what another gateway of the site revoked", "client", floor.Client,
			"error", failed)
		return err
	}
	if err != nil {
		return err
	}
	return s.journal.SetFloor(cutBy(text), stampOf(floor))
}

// raise refuses what is as old as another member's floor or older, and ends what was granted of it. Every start does
// that again, so newer grants must stay. A revocation that is new here ends all: the clock by which a packet was not
// too far ahead here may itself be ahead of that of the other member. raise returns what identifies the sessions to
// cut; if they were cut, only those of grants that ended now.
func (s *Server) raise(ctx context.Context, f *share.Floor, cut topic) (cuttable []firewall.Grant, err error) {
	now := s.now()
	match := firewall.Match{Client: f.Client, Services: f.Services, Asked: stampOf(f)}
	if f.Of.IsValid() {
		match.Source = f.Of.Addr()
		if !f.Of.IsSingleIP() {
			match.Bits = uint8(f.Of.Bits())
		}
	}
	if f.Services == nil && slices.ContainsFunc(f.Topics, func(t share.TopicFloor) bool {
		return s.journal.FloorOf(t.Topic).Before(t.Stamp)
	}) {
		match.Asked = time.Time{}
	}
	ended, err := s.firewall.Revoke(ctx, match, now)
	if err != nil {
		return nil, err
	}
	for _, t := range f.Topics { // then it is no longer new
		err = errors.Join(err, s.journal.SetFloor(t.Topic, t.Stamp))
	}
	s.feed.Revoked(ended, "another gateway of the site ended it", now)
	if len(ended) > 0 {
		s.recordElsewhere("end", f.Client, match.Source, []slog.Attr{slog.Int("grants", len(ended))})
	}
	if cuttable = ended; f.Cut && s.journal.FloorOf(cut).IsZero() {
		cuttable = s.cuttable(control.Request{Client: f.Client, Source: match.Source}, ended)
	}
	return cuttable, err
}

// stampOf returns the stamp up to which a floor ends grants.
func stampOf(f *share.Floor) (stamp time.Time) {
	for _, t := range f.Topics {
		if t.Stamp.After(stamp) {
			stamp = t.Stamp
		}
	}
	return stamp
}

// cutBy identifies, in the journal, that the sessions of a floor were cut. They are cut once: later ones are of newer
// grants, which may have ended since.
func cutBy(floor []byte) topic { return topicOf("cut", string(floor)) }

// recordElsewhere records what changed here because of another member.
func (s *Server) recordElsewhere(act, client string, source netip.Addr, more []slog.Attr) {
	more = append([]slog.Attr{slog.String("site", s.shared.name)}, more...)
	// A lost line is counted, for status.
	_ = s.audit.RecordAct(audit.Act{Time: s.now(), Act: act, Program: "spa-server", Client: client, Source: source,
		By: audit.By{UID: os.Getuid()}, More: more})
}

// floorsAt returns floors of these topics at a stamp.
func floorsAt(topics []topic, stamp time.Time) []share.TopicFloor {
	floors := make([]share.TopicFloor, len(topics))
	for i, t := range topics {
		floors[i] = share.TopicFloor{Topic: t, Stamp: stamp}
	}
	return floors
}

// mostTaken is how many clients may wait at once for the other members to shut them out. Each member does that by its
// own bundle too.
const mostTaken = 64

// takenElsewhere makes the other members end what a client of the fleet held that has lost keys here.
func (s *Server) takenElsewhere(client *keys.Client, ids []keys.ID, now time.Time) {
	m := s.shared.member
	if m == nil || !client.Fleet || len(ids) == 0 || m.Status().Ending >= mostTaken {
		return
	}
	floor := share.Floor{Topics: floorsAt(topicsOf(ids, everything), s.final(now)), Client: client.Name}
	if text, err := floor.Encode(); err == nil {
		m.End(text, s.longest(), nil)
	}
}

// errElsewhere means that another member may still have what was revoked.
var errElsewhere = errors.New("the other gateways of the site have not confirmed it")

// revokeElsewhere ends the same on the other members, and waits until they have. It returns the site, and an error if
// that is not known; no site if there is nothing to end elsewhere.
func (s *Server) revokeElsewhere(r control.Request) (site string, err error) {
	s.line.Lock()
	m, site := s.shared.member, s.shared.name
	if m == nil {
		s.line.Unlock()
		return "", nil
	}
	stamp := s.final(s.now())
	floor := share.Floor{Client: r.Client, Cut: r.Cut}
	var topics []topic
	if r.Client == "" {
		floor.Of = netip.PrefixFrom(r.Source, r.Source.BitLen())
		topics = []topic{ofAddress(r.Source), ofNetworks(r.Source)}
	} else {
		topics = topicsOf(s.idsOf(r.Client), everything)
		if c, ok := s.clients.Client(r.Client); ok && !c.Fleet || len(topics) == 0 {
			s.line.Unlock()
			return "", nil // it has a file here, and knocks nowhere else
		}
	}
	floor.Topics = floorsAt(topics, stamp)
	text, err := floor.Encode()
	keep := s.longest()
	if err == nil && r.Cut {
		_ = s.journal.SetFloor(cutBy(text), stamp) // otherwise the next start cuts them again
	}
	s.line.Unlock()
	if err != nil {
		return site, err
	}
	answer := make(chan bool, 1)
	m.End(text, keep, func(ok bool) { answer <- ok })
	if !m.Alive() {
		return site, errElsewhere // it is announced once that is possible
	}
	select {
	case ok := <-answer:
		if ok {
			return site, nil
		}
	case <-time.After(member.EndWithin + time.Second): // the server stops
	}
	return site, errElsewhere
}

// checkOnce logs services that cannot be what they say on a shared address.
func (s *Server) checkOnce() {
	for _, service := range s.config.Services {
		if service.Once {
			s.log.Error("once = true holds on the gateway that grants it: no other gateway of the site lets the client in",
				"service", service.Name)
		}
	}
}
