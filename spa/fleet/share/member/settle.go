package member

import (
	"container/list"
	"time"

	"sallyport/spa/fleet/share"
)

const settleAtOnce = 256 // outcomes on their way to the store

// A settlement is an outcome that the store does not have yet.
type settlement struct {
	request share.Name
	outcome []byte
	until   time.Time
	sent    bool
	at      *list.Element
}

// Settled records the outcome of an attempt for all members until a time at which what was granted has ended; at least
// as long as the request id is kept. It does nothing for a Repeat.
func (m *Member) Settled(a *Attempt, outcome []byte, until time.Time) {
	if a.repeat {
		return
	}
	now := time.Now()
	if least := now.Add(share.Lease(m.config.Window)); until.Before(least) {
		until = least
	}
	s := &settlement{request: a.request, outcome: outcome, until: until}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.settling.Len() >= maxSettle {
		m.forget(m.settling.Front().Value.(*settlement))
		m.counts.Unannounced++
	}
	s.at = m.settling.PushBack(s)
	m.sendSettlements(now)
	m.woken()
}

// sendSettlements sends outcomes, the oldest first.
func (m *Member) sendSettlements(now time.Time) {
	n := 0
	for at := m.settling.Front(); at != nil && n < settleAtOnce && m.link != nil; n++ {
		s := at.Value.(*settlement)
		at = at.Next()
		switch {
		case !now.Before(s.until):
			m.forget(s)
			m.counts.Unannounced++
		case !s.sent:
			s.sent = true
			value := m.seal("o/"+s.request.String(), s.outcome, now)
			m.request(share.Message{Kind: share.Settle, ID: s.request, Value: value, Seconds: seconds(s.until.Sub(now))},
				request{settlement: s})
		}
	}
}

// recorded handles the answer.
func (m *Member) recorded(s *settlement, msg share.Message) error {
	switch msg.Kind {
	case share.Done:
		m.forget(s)
		m.sendSettlements(time.Now())
	case share.Failed:
		s.sent = false
	default:
		return errAnswer
	}
	return nil
}

func (m *Member) forget(s *settlement) { m.settling.Remove(s.at) }
