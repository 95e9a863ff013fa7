package member

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"sallyport/spa/fleet/share"
)

// illFor is for how long a member that cannot raise a floor asks for no session. The others wait for the
// acknowledgement of a member with a session, so they must see it end, and have time to answer a close.
const illFor = share.SessionTTL + EndWithin

var (
	errOrder = errors.New("the agent reports what happened in another order than the store's")
	errPeers = fmt.Errorf("the agent reports more than %d members", maxPeers)
)

// ask asks for a session. Only the last question counts.
func (m *Member) ask(now time.Time) {
	delete(m.link.requests, m.link.asking)
	m.link.asking = m.request(share.Message{Kind: share.AskSession, Run: m.me}, request{})
	m.link.asked = now
}

// inSession handles the answer. The session lives from when it was asked for: the answer may be late.
func (m *Member) inSession(l *link, msg share.Message, now time.Time) error {
	if msg.Seq != l.asking {
		return nil
	}
	delete(l.requests, msg.Seq)
	l.asking = 0
	if msg.Kind == share.Refused {
		m.refuse(now)
		return nil
	}
	m.refused = time.Time{}
	m.lapse(now)
	m.asked = l.asked
	if msg.Revision != m.session { // the store had ended it: a close may have been answered without this member
		m.session = msg.Revision
		m.apart()
	}
	if l.reading == 0 || l.epoch != m.epoch {
		m.read(l)
	}
	m.sendAll()
	return nil
}

// refuse handles an answer that another run has the session. After a crash that is this member's last run, until its
// session ends.
func (m *Member) refuse(now time.Time) {
	if m.refused.IsZero() {
		m.refused = now
	}
	if lasts := now.Sub(m.refused); lasts > share.SessionTTL && lasts <= share.SessionTTL+share.SessionEvery {
		m.log(slog.LevelError, "another gateway of the site has this one's name", "member", m.config.Member)
	}
	m.asked = time.Time{}
	m.apart()
}

// read reads the floors of this epoch. That comes after the session: a floor between the two would be missed.
func (m *Member) read(l *link) {
	delete(l.requests, l.reading)
	l.reading = m.request(share.Message{Kind: share.Read}, request{})
	l.epoch = m.epoch
	l.loading, l.peers = false, nil // what still comes is of an earlier reading
}

// begin starts to read anew.
func (m *Member) begin(l *link, msg share.Message) error {
	if msg.Seq != l.reading {
		l.loading, l.peers = false, nil // an earlier one, whose events are ignored
		return nil
	}
	delete(l.requests, msg.Seq)
	l.loading, l.begun, l.peers = true, msg.Revision, make(map[string]peer)
	if l.epoch == m.epoch && msg.Revision < m.session {
		return errOrder
	}
	m.event(l, func() { m.restored(msg.Revision) })
	return nil
}

// restored notices a store that was set back: it counts revisions from an earlier one again.
func (m *Member) restored(revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if revision < m.raised {
		m.raised, m.installed, m.wanted, m.acked = 0, 0, 0, 0
		m.log(slog.LevelError, "the store was set back: what members of the site spent since may be accepted again")
	}
}

// happened handles what the store has, or what changed.
func (m *Member) happened(l *link, msg share.Message) error {
	if l.peers == nil {
		return nil // of an earlier reading
	}
	kind, name, _ := strings.Cut(msg.Key, "/")
	old := msg.Revision <= l.begun // of what there was, not a change
	if l.loading && (!old || kind == "o") || !l.loading && old && kind != "o" || !old && msg.Revision < m.revision {
		return errOrder
	}
	switch kind {
	case "s":
		l.session(name, msg)
	case "a":
		l.acknowledged(name, msg)
	case "o":
		m.event(l, func() { m.install(msg, old) })
	case "f":
		m.event(l, func() { m.raise(l, msg, old) })
	}
	if len(l.peers) > maxPeers {
		return errPeers
	}
	if !old && m.link == l {
		m.see(msg.Revision)
	}
	return nil
}

// session changes the view of another member's session, or this one's.
func (l *link) session(name string, msg share.Message) {
	if msg.Deleted {
		delete(l.peers, name)
		return
	}
	run, _ := share.ParseToken(string(msg.Value)) // a session, whatever its value
	p, ok := l.peers[name]
	if !ok || p.run != run {
		p.acked, p.run = 0, run
	}
	l.peers[name] = p
}

// acknowledged changes the view of an acknowledgement. Without a session it says nothing.
func (l *link) acknowledged(name string, msg share.Message) {
	p, ok := l.peers[name]
	if !ok {
		return
	}
	p.acked, _ = strconv.ParseInt(string(msg.Value), 10, 64) // 0 for what is no number
	l.peers[name] = p
}

// loaded is reached when everything was read.
func (m *Member) loaded(l *link, msg share.Message) error {
	if msg.Seq != l.reading || !l.loading {
		return nil
	}
	l.loading = false
	m.see(l.begun)
	epoch, begun := l.epoch, l.begun
	m.event(l, func() { m.join(epoch, begun) })
	return nil
}

// join is reached when all floors that were read are in force.
func (m *Member) join(epoch int, revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.raised = max(m.raised, revision)
	if epoch != m.epoch || m.link == nil {
		return
	}
	if !m.joined {
		m.log(slog.LevelInfo, "joined the other members of the site")
	}
	m.joined = true
	m.wanted = max(m.wanted, revision)
	m.sendAck(time.Now())
	m.sendAll()
	m.check()
	m.woken()
}

// install installs what another member granted, unless a close may have been answered that is not known here. What is
// left out is read again.
func (m *Member) install(msg share.Message, old bool) {
	m.mu.Lock()
	epoch := m.epoch
	fits := m.aliveAt(time.Now()) && !msg.Deleted && msg.Revision > m.installed
	m.mu.Unlock()
	if !fits {
		return
	}
	is, ok := m.opened(msg)
	ok = ok && is.run != m.me
	if ok {
		n := News{Outcome: is.text, Member: m.nameOf(is.run), Sent: is.at}
		if old {
			n.Sent = time.Time{}
		}
		m.config.To.Install(n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.epoch != epoch || !m.aliveAt(time.Now()) {
		return // the server may have left it out
	}
	m.installed = max(m.installed, msg.Revision)
	if ok {
		m.counts.Installed++
	}
}

// raise puts another member's floor into force, and then acknowledges it. What is read is raised even if floors of
// later revisions were: a store that was set back counts the same revisions twice.
func (m *Member) raise(l *link, msg share.Message, read bool) {
	m.mu.Lock()
	fresh := msg.Revision > m.raised
	m.mu.Unlock()
	if msg.Deleted || !fresh && !read {
		return
	}
	var err error
	is, ok := m.opened(msg)
	ok = ok && is.run != m.me
	if ok {
		err = m.config.To.Raise(is.text)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil { // to be read again, and acknowledged by nobody until then
		m.log(slog.LevelError, "could not put another member's floor into force", "error", err)
		m.apart()
		m.lost(l)
		m.ill = time.Now().Add(illFor)
		return
	}
	if ok && fresh {
		m.counts.Raised++
	}
	m.raised = max(m.raised, msg.Revision)
	m.wanted = max(m.wanted, m.raised)
	m.sendAck(time.Now())
}

// opened opens what a member wrote.
func (m *Member) opened(msg share.Message) (is said, ok bool) {
	is, err := m.open(msg.Key, msg.Value)
	if err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.unsealed(msg.Key)
	}
	return is, err == nil
}

// nameOf returns the name of the member that has a session with this run, or "".
func (m *Member) nameOf(run share.Token) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, p := range m.peers {
		if p.run == run {
			return name
		}
	}
	return ""
}

func (m *Member) unsealed(key string) {
	m.counts.Unsealed++
	if m.counts.Unsealed == 1 {
		m.config.Log.Error("the store has what no member of the site wrote; it is ignored, and more of it counted",
			"key", key)
	}
}

// sendAck acknowledges the floors that are in force. One acknowledgement is on its way at a time.
func (m *Member) sendAck(now time.Time) {
	if m.link == nil || m.link.acking || !m.aliveAt(now) || m.wanted <= m.acked {
		return
	}
	m.link.acking = true
	m.request(share.Message{Kind: share.Ack, Run: m.me, Revision: m.wanted}, request{revision: m.wanted, epoch: m.epoch})
}

// acknowledged handles the answer. What failed is sent again later.
func (m *Member) acknowledged(l *link, r request, msg share.Message) error {
	l.acking = false
	switch {
	case msg.Kind == share.Done && r.epoch == m.epoch:
		m.acked = max(m.acked, r.revision)
		m.sendAck(time.Now())
	case msg.Kind == share.Done, msg.Kind == share.Failed:
		m.woken()
	default:
		return errAnswer
	}
	return nil
}
