package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"sallyport/firewall"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
	"sallyport/spa/replay"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// Gateways that share an address are members of a site of their fleet, and have one server id: a packet to one of them
// is a packet to all. So a packet of a client of the fleet that the journal admits is spent for all of them first. It
// is pending until the store has answered, through the agent. Then it is decided like every other. What the server
// learns of the other members is in elsewhere.go.

// sharing is what the server has as a member of a site.
type sharing struct {
	socket   *control.Listener // for the agent; nil: it could not be opened, or the gateway is in no fleet
	unopened error             // why
	agent    int               // the user that the agent runs as; -1: there is none

	// The rest is guarded by Server.line.
	name    string // of the site
	key     share.Key
	local   bool                       // decide alone without the store
	member  *member.Member             // nil: the gateway shares no address
	changed chan struct{}              // member has changed
	settled map[[sha256.Size]byte]bool // outcomes and floors that need no second look, with these settings
}

// agentUser is the user that the agent runs as.
const agentUser = "spa-fleet"

// openShare opens the socket on which the agent connects, while that can be done. Without it the clients of a shared
// address cannot knock; all others can.
func (s *Server) openShare() error {
	if !s.config.Fleet.On() {
		return nil
	}
	s.shared.agent = -1
	if uid, _, ok := setup.Account(agentUser); ok {
		s.shared.agent = uid
	}
	uid, _, err := sandbox.Becomes(setup.SystemUser)
	if err != nil {
		return err
	}
	path := s.config.Fleet.Share
	err = setup.Either(path, func() (err error) {
		s.shared.socket, err = control.Bind(path, uid)
		return err
	})()
	if err != nil {
		s.shared.socket, s.shared.unopened = nil, err
		s.noteUnopened()
		return nil
	}
	s.keep(s.shared.socket)
	return nil
}

// noteUnopened logs why no agent can connect, if one is needed.
func (s *Server) noteUnopened() {
	if s.shared.unopened != nil && s.shared.member != nil {
		s.log.Error("no agent can connect, so clients of the fleet cannot knock: fix it, and restart the server", "error",
			s.shared.unopened)
	}
}

// joinSite makes the gateway a member of the site that its bundle names. Without a key it is a gateway alone.
func (s *Server) joinSite(name string, key share.Key) {
	h := &s.shared
	h.prepare()
	h.settled = make(map[[sha256.Size]byte]bool)
	h.local = s.config.Fleet.Standalone == config.StandaloneLocal
	if h.name == name && h.key.Equal(key) {
		if h.member != nil { // which keeps what waits for the store
			h.member.SetLocal(h.local)
		}
		return
	}
	h.name, h.key, h.member = name, key, nil
	if !key.IsZero() {
		to := &elsewhere{s: s}
		to.member = member.New(member.Config{Fleet: s.config.Fleet.ID, Site: name, Member: s.config.FleetName(), Key: key,
			Window: share.Window, Local: h.local, To: to, Log: s.log})
		h.member = to.member
		s.noteUnopened()
		s.checkOnce()
	}
	select {
	case h.changed <- struct{}{}:
	default: // that is not noticed yet
	}
}

func (h *sharing) prepare() {
	if h.changed == nil {
		h.changed = make(chan struct{}, 1)
	}
}

// share is a member of the site until ctx ends, through the agents that connect.
func (s *Server) share(ctx context.Context) error {
	agents := make(chan net.Conn)
	var beside sync.WaitGroup
	defer beside.Wait()
	if s.shared.socket != nil {
		beside.Go(func() { s.acceptAgents(ctx, agents) })
	}
	for ctx.Err() == nil {
		s.line.Lock()
		s.shared.prepare()
		m, changed := s.shared.member, s.shared.changed
		s.line.Unlock()
		running, stop := context.WithCancel(ctx)
		var run sync.WaitGroup
		run.Go(func() {
			if m == nil {
				turnAway(running, agents)
				return
			}
			m.Run(running, agents)
		})
		s.awaitChange(ctx, m, changed)
		stop()
		run.Wait()
	}
	return nil
}

// awaitChange returns once the server is another member than m.
func (s *Server) awaitChange(ctx context.Context, m *member.Member, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			s.line.Lock()
			another := s.shared.member != m
			s.line.Unlock()
			if another {
				return
			}
		}
	}
}

// turnAway closes the connections of agents that nobody needs.
func turnAway(ctx context.Context, agents <-chan net.Conn) {
	for {
		select {
		case <-ctx.Done():
			return
		case conn := <-agents:
			conn.Close()
		}
	}
}

// acceptAgents passes on the connections of the agent. The agent is not believed more than the store: it has no key.
func (s *Server) acceptAgents(ctx context.Context, agents chan<- net.Conn) {
	listener := s.shared.socket.Net()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return
			}
		}
		if peer, err := control.Peer(conn.(*net.UnixConn)); err != nil || !s.isAgent(int(peer.Uid)) {
			conn.Close()
			continue
		}
		select {
		case agents <- conn:
		case <-ctx.Done():
			conn.Close()
		}
	}
}

func (s *Server) isAgent(uid int) bool {
	return uid == 0 || uid == os.Geteuid() || uid == s.shared.agent
}

// pending is a packet that this gateway has spent, and of which the other members are not known to agree.
type pending struct {
	s      *Server
	member *member.Member
	packet capture.Packet
	spent  spent
}

// tooFar reports whether a packet is for the whole site, and its stamp further off than members agree on.
func (s *Server) tooFar(k *spa.Knock, now time.Time) bool {
	return s.shared.member != nil && k.Client.Fleet && now.Sub(k.Time).Abs() > share.Window
}

// spendForAll spends a packet for all members. It is decided once the store has answered, or never.
func (s *Server) spendForAll(p capture.Packet, spent spent) audit.Event {
	p.Data, p.Frame = nil, slices.Clone(p.Frame) // valid until the next packet
	k := spent.event.Knock
	w := &pending{s, s.shared.member, p, spent}
	// If it is not taken, another packet of the command is on its way, or the client sends again.
	w.member.Spend(&member.Spend{Key: k.KeyID, Nonce: k.Nonce, Request: k.Request.ID, Decide: w.decide})
	return spent.event.As(audit.Pending, nil)
}

// decide decides a pending packet, as handle does with others. It is the last look: what has changed since the packet
// came counts.
func (w *pending) decide(how member.How, a *member.Attempt, outcome []byte) {
	s := w.s
	ctx := context.Background() // the packet is spent: see handle
	s.line.Lock()
	if !w.mayBeDecided(how) {
		s.line.Unlock()
		w.member.GaveUp(a)
		return
	}
	switch {
	case how == member.Repeat:
		event := s.repeatOutcome(ctx, w.spent, outcome)
		if !w.member.Alive() { // stopped since the last look: see grant
			s.line.Unlock()
			return
		}
		w.conclude(how, a, event)
	case w.spent.reused == nil && w.spent.event.Knock.Type == spa.TypeClose:
		w.close(ctx, how, a) // even if the journal has an outcome: that may never have been answered
	default:
		if how == member.Act {
			w.spent.alive = w.member.Alive
		}
		w.conclude(how, a, s.decide(ctx, w.packet, w.spent))
	}
}

// mayBeDecided takes the last look, and puts what is known now into the packet's event.
func (w *pending) mayBeDecided(how member.How) bool {
	s, now := w.s, w.s.now()
	event := &w.spent.event
	is, ok := s.clients.Lookup(event.Knock.KeyID)
	age := now.Sub(event.Knock.Time)
	switch {
	case s.shared.member != w.member: // it is another site's packet now
		return false
	case !ok || !is.Client.Fleet || !is.Client.Revoked.IsZero() || !is.Good(now):
		return false
	case age.Abs() > s.identity.Window || age.Abs() > share.Window:
		return false
	case how != member.Alone && !w.member.Alive():
		return false
	case how != member.Repeat && !share.Undone(event.Knock.First, now, share.Window):
		return false // the store may have forgotten that it was done
	}
	event.Time, event.Client, event.Knock.Client = now, is.Client.Name, &is.Client
	return true
}

var errApart = errors.New("the gateway was stopped while it granted, so the others may have ended it: taken back")

// grant puts grants into force. The process may have been stopped before that, for longer than its session: then a
// close may have been answered without this gateway. So it looks again, and takes back what it may not grant any more.
func (s *Server) grant(ctx context.Context, gs []firewall.Grant, now time.Time, alive func() bool) error {
	err := s.firewall.Grant(ctx, gs, now)
	if err != nil || alive == nil || alive() {
		return err
	}
	err = errApart
	for _, g := range gs {
		_, failed := s.firewall.Revoke(ctx, firewall.Match{Client: g.Client, Peer: g.Peer(), Services: []string{g.Service}},
			s.now())
		err = errors.Join(err, failed)
	}
	return err
}

// close ends the client's grants here, and answers once no other member has them. The caller holds the line; close
// lets go of it.
func (w *pending) close(ctx context.Context, how member.How, a *member.Attempt) {
	s := w.s
	k := w.spent.event.Knock
	names := s.closing(w.spent.event) // what a member means by them may differ
	if len(names) > share.MaxServices {
		names = service.Names(k.Services)
	}
	floor := share.Floor{Topics: floorsAt(s.closeTopics(k), s.closesUpTo(w.spent.event)), Client: k.Client.Name,
		Of: reach(w.spent.event), Services: names} // each member finds what else it has of their ports
	keep := keepFloor(s.firewall.GrantsOf(k.Client.Name, w.spent.event.Time), w.spent.event.Time)
	event := s.closeGrants(ctx, w.spent.event)
	if event.Verdict != audit.Closed { // refused
		w.conclude(how, a, event)
		return
	}
	text, err := floor.Encode()
	if err == nil && how == member.Alone {
		w.conclude(how, a, event)
		w.member.End(text, keep, nil) // once the store is back
		return
	}
	s.line.Unlock()
	if err != nil { // then it must not be answered
		s.log.Error("the other gateways cannot learn of a close", "client", k.Client.Name, "error", err)
		return
	}
	w.member.End(text, keep, func(ok bool) {
		if !ok {
			w.member.GaveUp(a) // the client sends again
			return
		}
		s.line.Lock()
		w.conclude(how, a, event)
	})
}

// conclude records a decision and answers it. The caller holds the line; conclude lets go of it.
func (w *pending) conclude(how member.How, a *member.Attempt, event audit.Event) {
	if how != member.Repeat {
		w.announce(a, event)
	}
	w.s.report(w.packet, event)
}

// announce tells the other members the outcome: they answer retries with it, and install what it grants.
func (w *pending) announce(a *member.Attempt, event audit.Event) {
	k := event.Knock
	receipt, err := event.Receipt.AppendBinary(nil)
	if err == nil {
		o := share.Outcome{Key: k.KeyID, Client: event.Client, From: event.From.Addr().WithZone(""), LetIn: k.LetIn,
			Services: service.Names(k.Services), Receipt: receipt, Stated: k.Source.IsValid(), First: k.First}
		for _, s := range event.Receipt.Services {
			if s.For > 0 && event.Receipt.Time.Add(s.For).After(o.Until) {
				o.Until = event.Receipt.Time.Add(s.For)
			}
		}
		var text []byte
		if text, err = o.Encode(); err == nil {
			last := event.Time.Add(share.Longest)
			if o.Until.Before(last) {
				last = o.Until
			}
			w.member.Settled(a, text, last)
		}
	}
	if err != nil {
		w.s.log.Error("the other gateways cannot learn of an outcome", "client", event.Client, "error", err)
	}
}

// repeatOutcome answers a command that was decided, here or by another member, once what that granted is in force
// here.
func (s *Server) repeatOutcome(ctx context.Context, was spent, text []byte) audit.Event {
	event := was.event
	k := event.Knock
	o, err := share.ParseOutcome(text)
	switch {
	case err != nil:
		return s.refuse(event, audit.Failed, spa.ReasonFailed, err)
	case was.reused != nil || o.Key != k.KeyID || o.LetIn != k.LetIn ||
		!slices.Equal(o.Services, service.Names(k.Services)):
		return event.Answer(spa.Receipt{Status: spa.ReasonIDReused}).As(audit.Denied, replay.ErrReused)
	case s.superseded(k, event.From.Addr()):
		return s.supersede(event)
	}
	s.install(ctx, o)
	return s.repeat(event, o.Receipt)
}

// sharedStatus returns what the server knows as a member of a site; nil if it is none. The caller holds the line.
func (s *Server) sharedStatus() *control.Shared {
	h := &s.shared
	if h.member == nil {
		return nil
	}
	is := h.member.Status()
	st := &control.Shared{Site: h.name, Socket: s.config.Fleet.Share, Connected: is.Connected, Joined: is.Alive,
		Taken: is.Refused, Local: h.local, Members: []string{}, Waiting: is.Waiting,
		Counts: map[string]uint64{
			"won": is.Counts.Won, "repeated": is.Counts.Repeated, "spent": is.Counts.Spent,
			"unanswered": is.Counts.Unanswered, "pending": is.Counts.Pending, "alone": is.Counts.Alone,
			"dropped": is.Counts.Dropped, "installed": is.Counts.Installed, "ended": is.Counts.Raised,
			"unsealed": is.Counts.Unsealed, "unannounced": is.Counts.Unannounced, "unconfirmed": is.Counts.Unended,
			"lapsed": is.Counts.Lapses,
		}}
	for _, peer := range is.Peers {
		st.Members = append(st.Members, peer.Name)
	}
	return st
}
