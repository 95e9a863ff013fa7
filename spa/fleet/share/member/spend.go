package member

import (
	"container/list"
	"crypto/rand"
	"slices"
	"time"

	"sallyport/spa/fleet/share"
)

// An Attempt is one packet at one run of one member.
type Attempt struct {
	spend    *Spend
	token    share.Token // what it spends with
	owner    share.Token // the attempt that has the request id: this one, or one that this run gave up
	nonce    share.Name
	request  share.Name
	deadline time.Time
	at       *list.Element // in Member.order
	seq      uint64        // 0: not sent
	repeat   bool
}

// Spend spends a packet for all members. It never waits. It returns false if it drops the packet: a packet with the
// same request id is on its way, too many are, or Run does not run.
func (m *Member) Spend(s *Spend) bool {
	a := &Attempt{spend: s, nonce: m.config.Key.NonceName(s.Key, s.Nonce),
		request: m.config.Key.RequestName(s.Key, s.Request), deadline: time.Now().Add(share.AnswerWithin)}
	rand.Read(a.token[:])
	a.owner = a.token
	m.mu.Lock()
	defer m.mu.Unlock()
	queue := m.queues[s.Key]
	if !m.running || m.queued >= MaxSpends || len(queue) > MaxOfKey ||
		slices.ContainsFunc(queue, func(b *Attempt) bool { return b.request == a.request }) {
		m.counts.Dropped++
		return false
	}
	a.at = m.order.PushBack(a)
	m.queued++
	m.queues[s.Key] = append(queue, a)
	m.send(a)
	if m.order.Len() == 1 {
		m.woken()
	}
	return true
}

// send asks the store, if it is the attempt's turn.
func (m *Member) send(a *Attempt) {
	if m.queues[a.spend.Key][0] != a || a.seq != 0 || m.link == nil || !m.aliveAt(time.Now()) {
		return
	}
	a.seq = m.request(share.Message{Kind: share.Spend, Nonce: a.nonce, ID: a.request, Token: a.token},
		request{attempt: a})
}

// sendAll sends what has waited for the member to be alive.
func (m *Member) sendAll() {
	for at := m.order.Front(); at != nil; at = at.Next() {
		m.send(at.Value.(*Attempt))
	}
}

// answered handles the answer to an attempt.
func (m *Member) answered(a *Attempt, msg share.Message) error {
	switch msg.Kind {
	case share.Won:
		m.counts.Won++
		m.decide(a, Act, nil)
	case share.Repeat:
		m.repeated(a, msg)
	case share.Spent:
		m.counts.Spent++
		m.next(a)
	case share.Failed:
		m.unanswered(a)
	default:
		return errAnswer
	}
	return nil
}

// repeated handles a packet whose request id has an owner.
func (m *Member) repeated(a *Attempt, msg share.Message) {
	if len(msg.Value) > 0 {
		is, err := m.open("o/"+a.request.String(), msg.Value)
		if err != nil {
			m.unsealed("o/" + a.request.String())
			m.next(a)
			return
		}
		m.counts.Repeated++
		a.repeat = true
		m.decide(a, Repeat, is.text)
		return
	}
	if !m.given.take(msg.Token) { // its owner may have acted
		m.counts.Pending++
		m.next(a)
		return
	}
	a.owner = msg.Token
	m.decide(a, Act, nil)
}

// decide lets the server decide. The next packet of the key waits until it has.
func (m *Member) decide(a *Attempt, how How, outcome []byte) {
	m.finish(a)
	m.do(func() {
		a.spend.Decide(how, a, outcome)
		m.mu.Lock()
		m.next(a)
		m.mu.Unlock()
	})
}

// unanswered gives up an attempt: nobody knows whether it has won.
func (m *Member) unanswered(a *Attempt) {
	m.counts.Unanswered++
	if m.config.Local {
		m.counts.Alone++
		m.decide(a, Alone, nil)
		return
	}
	if a.seq != 0 {
		m.given.add(a.owner, time.Now().Add(share.Lease(m.config.Window)))
	}
	m.next(a)
}

// finish stops waiting for an answer: a late one is ignored.
func (m *Member) finish(a *Attempt) {
	m.order.Remove(a.at)
	if m.link != nil {
		delete(m.link.requests, a.seq)
	}
}

// next removes an attempt and sends the next of its key.
func (m *Member) next(a *Attempt) {
	m.finish(a)
	key := a.spend.Key
	queue := slices.DeleteFunc(m.queues[key], func(b *Attempt) bool { return b == a })
	m.queued -= len(m.queues[key]) - len(queue)
	if len(queue) == 0 {
		delete(m.queues, key)
		return
	}
	m.queues[key] = queue
	m.send(queue[0])
}

// expire gives up what was not answered in time.
func (m *Member) expire(now time.Time) {
	for at := m.order.Front(); at != nil && !now.Before(at.Value.(*Attempt).deadline); at = m.order.Front() {
		m.unanswered(at.Value.(*Attempt))
	}
}

// GaveUp says that an attempt was decided without an act or an answer: the next packet with its request id may act.
func (m *Member) GaveUp(a *Attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !a.repeat {
		m.given.add(a.owner, time.Now().Add(share.Lease(m.config.Window)))
	}
}

// givenUp remembers the attempts that this run gave up before it acted: only this run may act for them.
type givenUp struct {
	until map[share.Token]time.Time
	order []share.Token
}

func (g *givenUp) add(t share.Token, until time.Time) {
	now := time.Now()
	for len(g.order) > 0 && (len(g.order) >= maxGaveUp || !now.Before(g.until[g.order[0]])) {
		delete(g.until, g.order[0]) // a command whose attempt is forgotten is not done
		g.order = g.order[1:]
	}
	g.until[t] = until
	g.order = append(g.order, t)
}

// take forgets an attempt, and reports whether it was given up.
func (g *givenUp) take(t share.Token) bool {
	_, ok := g.until[t]
	delete(g.until, t)
	return ok
}
