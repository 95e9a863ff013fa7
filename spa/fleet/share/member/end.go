package member

import (
	"crypto/rand"
	"math"
	"slices"
	"time"

	"sallyport/spa/fleet/share"
)

// An ending is a close or a revocation that waits until all members have its floor in force.
type ending struct {
	name     share.Name // its own, so that no floor replaces another
	value    []byte
	keep     time.Duration
	sent     bool
	revision int64     // of the floor in the store; 0: not there yet
	deadline time.Time // for done
	until    time.Time // for the store
	done     func(ok bool)
}

// later is a floor that waits for its turn.
type later struct {
	floor []byte
	keep  time.Duration
	until time.Time
}

// tell answers, once.
func (m *Member) tell(e *ending, ok bool) {
	if done := e.done; done != nil {
		e.done = nil
		m.do(func() { done(ok) })
	}
}

// End announces a floor that this member has in force, after what it says has ended here. The store keeps it for keep:
// as long as the longest grant that it may have ended, at least. Done is called once from the goroutine that calls the
// Site, unless Run returns before: with true when no other member has or installs what the floor ended, with false if
// that is not known within EndWithin. Only true may be answered. Done may be nil.
func (m *Member) End(floor []byte, keep time.Duration, done func(ok bool)) {
	now := time.Now()
	e := &ending{keep: keep, deadline: now.Add(EndWithin), until: now.Add(keep), done: done}
	rand.Read(e.name[:])
	e.value = m.seal("f/"+e.name.String(), floor, now)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running || len(m.ends) >= MaxEnds {
		m.counts.Unended++
		m.tell(e, false)
		return
	}
	m.ends = append(m.ends, e)
	m.sendEnds(now)
	m.woken()
}

// EndLater announces a floor like End, without a done, once fewer than MaxLater others wait for that or for the store.
// So many of them, as when a bundle removes clients, neither keep out a close nor get lost. They are not kept over a
// restart.
func (m *Member) EndLater(floor []byte, keep time.Duration) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running {
		m.counts.Unended++
		return
	}
	m.later = append(m.later, later{floor, keep, now.Add(keep)})
	m.nextEnds(now)
	m.sendEnds(now)
	m.woken()
}

// nextEnds announces as much of what waits for its turn as there is room for.
func (m *Member) nextEnds(now time.Time) {
	if len(m.later) == 0 {
		return
	}
	room := MaxLater
	for _, e := range m.ends {
		if e.done == nil {
			room--
		}
	}
	for ; room > 0 && len(m.later) > 0; room-- {
		next := m.later[0]
		m.later[0] = later{}
		m.later = m.later[1:]
		e := &ending{keep: next.keep, deadline: now.Add(EndWithin), until: next.until}
		rand.Read(e.name[:])
		e.value = m.seal("f/"+e.name.String(), next.floor, now)
		m.ends = append(m.ends, e)
	}
}

// sendEnds sends what the store does not have yet.
func (m *Member) sendEnds(now time.Time) {
	for _, e := range m.ends {
		if m.link == nil || e.sent || e.revision != 0 {
			continue
		}
		e.sent = true
		m.request(share.Message{Kind: share.PutFloor, ID: e.name, Value: e.value, Seconds: seconds(e.keep)},
			request{ending: e})
	}
}

// raisedAt handles the answer.
func (m *Member) raisedAt(e *ending, msg share.Message) error {
	switch {
	case msg.Kind == share.Done && msg.Revision > 0:
		e.revision = msg.Revision
		m.check()
	case msg.Kind == share.Failed:
		e.sent = false // the next tick sends it again: it has its own name
	default:
		return errAnswer
	}
	return nil
}

// see takes over what is known of the other members at a revision.
func (m *Member) see(revision int64) {
	m.peers, m.revision = m.link.peers, revision
	m.check()
}

// check answers the ends whose floor all members with a session have acknowledged.
func (m *Member) check() {
	least := int64(math.MaxInt64)
	for _, p := range m.peers {
		least = min(least, p.acked)
	}
	if !m.aliveAt(time.Now()) {
		return
	}
	m.ends = slices.DeleteFunc(m.ends, func(e *ending) bool {
		if e.revision == 0 || e.revision > m.revision || e.revision > least {
			return false
		}
		m.tell(e, true)
		return true
	})
	m.nextEnds(time.Now())
	m.sendEnds(time.Now())
}

// expireEnds answers what takes too long. A floor that the store does not have yet is sent nevertheless.
func (m *Member) expireEnds(now time.Time) {
	m.ends = slices.DeleteFunc(m.ends, func(e *ending) bool {
		if now.Before(e.deadline) {
			return false
		}
		if e.done != nil {
			m.counts.Unended++
			m.tell(e, false)
		}
		return e.revision != 0 || !now.Before(e.until)
	})
	m.nextEnds(now)
}
