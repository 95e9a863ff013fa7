package server

import (
	"context"
	"crypto/sha256"
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
func (e *elsewhere) Install(n member.News) {
	o, err := share.ParseOutcome(n.Outcome)
	if err != nil {
		e.s.log.Error("another gateway's outcome cannot be read: is it newer than this one?", "error", err)
		return
	}
	e.s.line.Lock()
	defer e.s.line.Unlock()
	if !e.member.Alive() {
		return // another member may have answered a close meanwhile: the outcome comes again
	}
	what := sha256.Sum256(n.Outcome)
	if e.s.shared.settled[what] {
		return // the agent repeats itself
	}
	e.noteClock(o, n)
	if e.s.install(context.Background(), o) {
		e.s.noteSettled(what)
	}
}

// noteClock logs that nothing is left here of what another member has just granted, because the clocks differ.
func (e *elsewhere) noteClock(o *share.Outcome, n member.News) {
	now := e.s.now()
	if n.Sent.IsZero() || !n.Sent.Before(o.Until) || now.Before(o.Until) {
		return
	}
	e.member.Warn("nothing granted here: by this gateway's clock, what another one of the site granted is over: set the "+
		"clocks, or grant for longer than they differ", "gateway", n.Member, "behind_by", now.Sub(n.Sent).Round(time.Second),
		"client", o.Client, "services", o.Services)
}

// mostSettled is how many outcomes and floors a member remembers. Past the limit it looks at all of them again.
const mostSettled = 1 << 16

func (s *Server) noteSettled(text [sha256.Size]byte) {
	if len(s.shared.settled) >= mostSettled {
		clear(s.shared.settled)
	}
	s.shared.settled[text] = true
}

// install puts into force what another member granted, for the rest of its time, as far as this gateway's own settings
// and bundle grant it too. Programs do not run here: the member that granted it runs its own. It returns false if it
// may come to another result with the same settings.
func (s *Server) install(ctx context.Context, o *share.Outcome) bool {
	now := s.now()
	knock, granted, ends, ok := s.asked(o, now)
	if !ok || s.holds(knock, o, ends) || s.superseded(knock, o.From) || !o.First.After(s.journal.Status().Floor) {
		return true
	}
	var grants []firewall.Grant
	err := s.policy.Source(knock, o.From)
	if err == nil {
		grants, err = s.policy.Authorize(knock, o.From, granted, now)
	}
	for i, held := 0, s.firewall.GrantsOf(knock.Client.Name, now); i < len(grants); i++ {
		longer := func(g firewall.Grant) bool { // what it has for longer it keeps
			return g.Service == grants[i].Service && g.Peer() == grants[i].Peer() && !g.Until.Before(grants[i].Until)
		}
		if grants[i].Until.After(ends[i]) && !slices.ContainsFunc(held, longer) {
			grants[i].Until = ends[i]
		}
	}
	grants = slices.DeleteFunc(grants, func(g firewall.Grant) bool { return !g.Until.After(now) })
	if err == nil && len(grants) == 0 { // it has ended here, by this gateway's settings
		return true
	}
	if err == nil {
		err = s.firewall.MayLetIn(grants)
	}
	denied := err != nil
	if err == nil {
		err = s.grant(ctx, grants, now, s.shared.member.Alive)
	}
	if err != nil {
		s.log.Warn("not granted here: what another gateway of the site granted", "client", o.Client, "source", o.From,
			"services", o.Services, "error", err)
		return denied
	}
	s.feed.Expect(grants)
	s.seen.installed(knock.Client, grants)
	var names []string
	var until []time.Time
	for _, g := range grants {
		names, until = append(names, g.Service), append(until, g.Until)
	}
	s.recordElsewhere("install", o.Client, o.From, []slog.Attr{slog.Any("services", names), slog.Any("until", until)})
	return true
}

// asked returns the request of which this is the outcome as if it had come here, with the time at which it was granted
// and the end of each service. It leaves out what has ended, and what only one connection may use. It returns false if
// nothing is left, or if the client is not one of the fleet here.
func (s *Server) asked(o *share.Outcome, now time.Time) (k *spa.Knock, at time.Time, ends []time.Time, ok bool) {
	receipt, err := spa.ParseReceipt(o.Receipt)
	is, known := s.clients.Lookup(o.Key)
	switch {
	case err != nil || receipt.Status != spa.Granted || len(receipt.Services) != len(o.Services):
		return nil, at, nil, false
	case !known || !is.Client.Fleet || !is.Client.Revoked.IsZero() || !is.Good(now):
		return nil, at, nil, false
	case o.From.IsLinkLocalUnicast(): // another machine on every link
		return nil, at, nil, false
	}
	at = receipt.Time
	if at.After(now) { // that member's clock is ahead
		at = now
	}
	k = &spa.Knock{Client: &is.Client, KeyID: o.Key, Key: is.Key,
		Request: spa.Request{Type: spa.TypeOpen, Time: now, First: o.First, LetIn: o.LetIn}}
	if o.Stated {
		k.Source = o.From
	}
	for i, granted := range receipt.Services {
		wanted, err := service.ParseService(o.Services[i])
		end := at.Add(granted.For)
		if err != nil || granted.Once || !end.After(now) || s.config.Once(s.policy.Ports(wanted)) {
			continue
		}
		k.Services, ends = append(k.Services, wanted), append(ends, end)
		k.For = max(k.For, granted.For)
	}
	return k, at, ends, len(ends) > 0
}

// holds reports whether the client already holds all of this for as long, from the same request or a later one.
func (s *Server) holds(k *spa.Knock, o *share.Outcome, ends []time.Time) bool {
	held := s.firewall.GrantsOf(k.Client.Name, s.now())
	for i, wanted := range k.Services {
		if !slices.ContainsFunc(held, func(g firewall.Grant) bool {
			return g.Service == wanted.String() && g.Network() == whom(o) && !g.Until.Before(ends[i]) &&
				!g.Asked.Before(k.First)
		}) {
			return false
		}
	}
	return true
}

func whom(o *share.Outcome) netip.Prefix {
	if o.LetIn.IsValid() {
		return o.LetIn
	}
	return netip.PrefixFrom(o.From, o.From.BitLen())
}

// Raise implements member.Site.
func (e *elsewhere) Raise(text []byte) error {
	s := e.s
	floor, err := share.ParseFloor(text)
	if err != nil {
		return fmt.Errorf("what another gateway ended cannot be read: is it newer than this one? %w", err)
	}
	what := sha256.Sum256(text)
	s.line.Lock()
	if s.shared.settled[what] { // the agent repeats itself, and what that ended stays ended
		s.line.Unlock()
		return nil
	}
	cuttable, err := s.raise(context.Background(), floor, cutBy(text))
	s.line.Unlock()
	if floor.Cut {
		if _, failed := s.firewall.Cut(context.Background(), cuttable); failed != nil { // the grants have ended
			s.log.Error("could not end the sessions of what another gateway of the site revoked", "client", floor.Client,
				"error", failed)
			return err
		}
		err = errors.Join(err, s.journal.SetFloor(cutBy(text), stampOf(floor)))
	}
	if err == nil {
		s.line.Lock()
		s.noteSettled(what)
		s.line.Unlock()
	}
	return err
}

// raise refuses what is as old as another member's floor or older, and ends what was granted of it. Every start does
// that again, so newer grants must stay. It returns what identifies the sessions to cut; if they were cut, only those
// of grants that ended now. What has a file on this gateway is not of the fleet, and stays.
func (s *Server) raise(ctx context.Context, f *share.Floor, cut topic) (cuttable []firewall.Grant, err error) {
	now, stamp := s.now(), stampOf(f)
	services := named(f.Services)
	err = s.setTopics(s.topicsElsewhere(f, services), stamp)
	for _, t := range f.Topics {
		err = errors.Join(err, s.journal.SetFloor(t.Topic, t.Stamp))
	}
	match := firewall.Match{Asked: stamp}
	if f.Of.IsValid() {
		match.Source = f.Of.Addr()
		if !f.Of.IsSingleIP() {
			match.Bits = uint8(f.Of.Bits())
		}
	}
	clients := s.endsElsewhere(f, now)
	for _, match.Client = range clients {
		if match.Services = nil; f.Services != nil {
			match.Services = s.endedBy(match.Client, services, f.Of, now)
		}
		ended, failed := s.firewall.Revoke(ctx, match, now) // even if older requests may come
		err, cuttable = errors.Join(err, failed), append(cuttable, ended...)
	}
	s.feed.Revoked(cuttable, "another gateway of the site ended it", now)
	if len(cuttable) > 0 {
		s.recordElsewhere("end", f.Client, match.Source, []slog.Attr{slog.Int("grants", len(cuttable))})
	}
	if f.Cut && s.journal.FloorOf(cut).IsZero() {
		cuttable = append(cuttable, s.placed(s.seen.grantedTo(f.Of, clients))...)
	}
	return cuttable, err
}

// named returns services by their names, which have been checked.
func named(names []string) (list []service.Service) {
	for _, name := range names {
		if s, err := service.ParseService(name); err == nil {
			list = append(list, s)
		}
	}
	return list
}

// topicsElsewhere returns the topics of a floor for all keys of its client that are known here: a member that has
// another bundle may have others.
func (s *Server) topicsElsewhere(f *share.Floor, services []service.Service) []topic {
	switch {
	case f.Client == "" || s.isLocal(f.Client):
		return nil
	case f.Services == nil:
		return topicsOf(s.idsOf(f.Client), everything)
	}
	return s.topicsOfServices(s.idsOf(f.Client), services)
}

// endsElsewhere returns the clients whose grants a floor ends.
func (s *Server) endsElsewhere(f *share.Floor, now time.Time) []string {
	var names []string
	switch {
	case f.Client != "":
		names = []string{f.Client}
	case f.Of.IsValid():
		for _, g := range s.firewall.Grants(now) {
			if g.Network().Overlaps(f.Of) {
				names = append(names, g.Client)
			}
		}
		names = append(names, s.seen.clientsOf(f.Of)...)
		slices.Sort(names)
		names = slices.Compact(names)
	}
	return slices.DeleteFunc(names, s.isLocal)
}

// isLocal reports whether a client has a file on this gateway, and so is not one of the fleet.
func (s *Server) isLocal(client string) bool {
	c, ok := s.clients.Client(client)
	return ok && !c.Fleet || !ok && s.seen.isLocal(client)
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

// keepFloor returns for how long the other members must be told of a floor that ends these grants: one that is away
// has them until they end.
func keepFloor(ended []firewall.Grant, now time.Time) time.Duration {
	keep := share.Longest
	for _, g := range ended {
		keep = max(keep, g.Until.Sub(now))
	}
	return keep + share.Lease(share.Window)
}

// takenElsewhere makes the other members end what a client of the fleet holds that has no key here any more. If it has
// another key, they learn that by their own bundles: one of them may know it before this gateway.
func (s *Server) takenElsewhere(before, after *keys.Client, ids []keys.ID, now time.Time) {
	good := func(c keys.Credential) bool { return c.Client.Revoked.IsZero() && c.Good(now) }
	if after != nil && before.Revoked.IsZero() && !after.Revoked.IsZero() {
		ids = before.IDs()
	}
	m := s.shared.member
	switch {
	case m == nil || !before.Fleet || len(ids) == 0:
		return
	case after != nil && slices.ContainsFunc(after.Credentials(), good):
		return
	}
	floor := share.Floor{Topics: floorsAt(topicsOf(ids, everything), s.final(now)), Client: before.Name}
	if text, err := floor.Encode(); err == nil {
		m.EndLater(text, keepFloor(s.firewall.GrantsOf(before.Name, now), now))
	}
}

// errElsewhere means that another member may still have what was revoked.
var errElsewhere = errors.New("the other gateways of the site have not confirmed it")

// revokeElsewhere ends what ended here on the other members, and waits until they have. It returns the site, and an
// error if that is not known; no site if there is nothing to end elsewhere.
func (s *Server) revokeElsewhere(r control.Request, ended []firewall.Grant) (site string, err error) {
	s.line.Lock()
	m, site := s.shared.member, s.shared.name
	if m == nil {
		s.line.Unlock()
		return "", nil
	}
	now := s.now()
	stamp := s.final(now)
	floor := share.Floor{Client: r.Client, Cut: r.Cut}
	var topics []topic
	if r.Client == "" {
		floor.Of = netip.PrefixFrom(r.Source, r.Source.BitLen())
		topics = []topic{ofAddress(ofFleet, r.Source), ofNetworks(ofFleet, r.Source)}
	} else {
		topics = topicsOf(s.idsOf(r.Client), everything)
	}
	if s.isLocal(r.Client) || len(topics) == 0 || r.Source.IsLinkLocalUnicast() { // nobody else knows them
		s.line.Unlock()
		return "", nil
	}
	floor.Topics = floorsAt(topics, stamp)
	text, err := floor.Encode()
	if err == nil && r.Cut {
		_ = s.journal.SetFloor(cutBy(text), stamp) // otherwise the next start cuts them again
	}
	s.line.Unlock()
	if err != nil {
		return site, err
	}
	answer := make(chan bool, 1)
	m.End(text, keepFloor(ended, now), func(ok bool) { answer <- ok })
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
