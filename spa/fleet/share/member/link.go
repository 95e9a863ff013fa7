package member

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"sallyport/spa/fleet/share"
)

const writeWithin = 5 * time.Second // an agent that does not read for this long is dropped

var errAnswer = errors.New("the agent's answer does not fit the request, or nobody asked")

// A link is a connection to an agent. Member.mu guards its fields but conn.
type link struct {
	net  net.Conn
	conn *share.Conn

	out      []share.Message // to be written
	ready    sync.Cond       // out has something, or the link is closed
	closed   bool
	requests map[uint64]request // without an answer so far
	asking   uint64             // the last session that was asked for
	asked    time.Time          // when

	acking  bool
	reading uint64 // the last Read
	epoch   int    // in which it was sent
	loading bool   // between Begin and End
	begun   int64  // the revision of Begin
	peers   map[string]peer
}

// A request waits for its answer. One of the pointers is set for Spend, Settle and PutFloor.
type request struct {
	kind       share.Kind
	attempt    *Attempt
	settlement *settlement
	ending     *ending
	revision   int64 // of Ack
	epoch      int   // in which it was sent
}

// connect uses an agent instead of the one before.
func (m *Member) connect(conn net.Conn, all *sync.WaitGroup) {
	l := &link{net: conn, conn: share.NewConn(conn), requests: make(map[uint64]request)}
	l.ready.L = &m.mu
	m.mu.Lock()
	m.lost(m.link)
	m.link = l
	m.nextAsk, m.nextSend = time.Time{}, time.Time{}
	m.write(share.Message{Kind: share.Hello, Version: share.Version, Fleet: m.config.Fleet.String(), Site: m.config.Site,
		Member: m.config.Member, Seconds: seconds(share.Lease(m.config.Window))})
	m.mu.Unlock()
	all.Go(func() { m.writer(l) })
	all.Go(func() { m.reader(l) })
}

// lost drops a link, and with it what waits for its answers. Dropping it again does nothing.
func (m *Member) lost(l *link) {
	if l == nil || l.closed {
		return
	}
	l.close()
	if m.link == l {
		m.link = nil
	}
	for _, r := range l.requests {
		switch {
		case r.attempt != nil:
			m.unanswered(r.attempt)
		case r.settlement != nil:
			r.settlement.sent = false
		case r.ending != nil:
			r.ending.sent = false
		}
	}
	l.requests = nil
	m.todo.changed.Broadcast()
}

func (l *link) close() {
	l.closed = true
	l.net.Close()
	l.ready.Broadcast()
}

// leave ends the session, if the agent reads that.
func (l *link) leave(run share.Token) {
	l.net.SetDeadline(time.Now().Add(time.Second))
	_ = l.conn.Write(share.Message{Kind: share.Leave, Run: run}) // otherwise the session ends by itself
	l.ready.L.Lock()
	l.close()
	l.ready.L.Unlock()
}

// write queues a message. Unanswered requests are bounded, so the queue is too.
func (m *Member) write(msg share.Message) {
	m.link.out = append(m.link.out, msg)
	m.link.ready.Broadcast()
}

// request queues a request and returns its number.
func (m *Member) request(msg share.Message, r request) uint64 {
	m.seq++
	msg.Seq, r.kind = m.seq, msg.Kind
	m.link.requests[m.seq] = r
	m.write(msg)
	return m.seq
}

func (m *Member) writer(l *link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for !l.closed {
		if len(l.out) == 0 {
			l.ready.Wait()
			continue
		}
		out := l.out
		l.out = nil
		m.mu.Unlock()
		l.net.SetWriteDeadline(time.Now().Add(writeWithin))
		err := l.conn.Write(out...)
		m.mu.Lock()
		if err != nil {
			m.leaveAgent(l, err)
		}
	}
}

func (m *Member) reader(l *link) {
	for {
		msg, err := l.conn.Read()
		m.mu.Lock()
		if err == nil && m.link == l {
			err = m.take(l, msg, time.Now())
		}
		if err != nil {
			m.leaveAgent(l, err)
		}
		closed := l.closed
		m.mu.Unlock()
		if closed {
			return
		}
	}
}

func (m *Member) leaveAgent(l *link, err error) {
	if !l.closed && !errors.Is(err, io.EOF) {
		m.log(slog.LevelWarn, "lost the agent that reaches the other members", "error", err)
	}
	m.lost(l)
	m.woken()
}

// take handles a message of the agent. After an error the agent is dropped.
func (m *Member) take(l *link, msg share.Message, now time.Time) error {
	switch msg.Kind {
	case share.Event:
		return m.happened(l, msg)
	case share.Begin:
		return m.begin(l, msg)
	case share.End:
		return m.loaded(l, msg)
	case share.InSession, share.Refused:
		return m.inSession(l, msg, now)
	case share.Won, share.Spent, share.Repeat, share.Done, share.Failed:
	default:
		return errAnswer // a server's message
	}
	r, ok := l.requests[msg.Seq]
	if !ok {
		return nil // given up or answered before
	}
	err := m.answer(l, r, msg)
	if err == nil { // otherwise the link is dropped, with what waits for answers
		delete(l.requests, msg.Seq)
	}
	return err
}

// answer handles the answer to a request.
func (m *Member) answer(l *link, r request, msg share.Message) error {
	switch r.kind {
	case share.AskSession:
		return orFailed(msg) // asked again soon
	case share.Read:
		l.reading = 0 // the next session asks again
		return orFailed(msg)
	case share.Spend:
		return m.answered(r.attempt, msg)
	case share.Settle:
		return m.recorded(r.settlement, msg)
	case share.PutFloor:
		return m.raisedAt(r.ending, msg)
	case share.Ack:
		return m.acknowledged(l, r, msg)
	}
	return errAnswer
}

func orFailed(msg share.Message) error {
	if msg.Kind != share.Failed {
		return fmt.Errorf("%w: %s", errAnswer, msg.Kind)
	}
	return nil
}
