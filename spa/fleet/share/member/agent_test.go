package member_test

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"sallyport/spa/fleet/share"
)

// chance is a source of randomness for many goroutines.
type chance struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newChance(seed uint64) *chance { return &chance{r: rand.New(rand.NewPCG(seed, 1))} }

// of reports true with this probability.
func (c *chance) of(p float64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.Float64() < p
}

func (c *chance) n(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(n)
}

// upTo returns a duration that is no whole number of anything.
func (c *chance) upTo(d time.Duration) time.Duration { return time.Duration(1 + c.n(int(d))) }

// trouble is how likely what goes wrong is, for each request or event.
type trouble struct {
	late, lost, twice, failed, lag, broken float64
}

// An agent is the program between a member and the store.
type agent struct {
	store   *store
	chance  *chance
	trouble func() trouble
	away    func() bool // the store cannot be reached

	mu     sync.Mutex
	member string
	lease  time.Duration
	reads  int
}

// serve answers a server until the connection ends.
func (a *agent) serve(nc net.Conn) {
	conn := share.NewConn(nc)
	gone := make(chan struct{})
	defer close(gone)
	defer nc.Close()
	for {
		m, err := conn.Read()
		if err != nil {
			return
		}
		switch m.Kind {
		case share.Hello:
			a.member, a.lease = m.Member, time.Duration(m.Seconds)*time.Second
		case share.Read:
			a.mu.Lock()
			a.reads++
			n := a.reads
			a.mu.Unlock()
			go a.read(conn, m.Seq, n, gone)
		case share.Leave:
			a.store.leave(a.member, m.Run)
		default:
			go a.request(conn, m)
		}
	}
}

// request lets the store apply a request once, several times or never, and loses answers or repeats them.
func (a *agent) request(conn *share.Conn, m share.Message) {
	t := a.trouble()
	late := time.AfterFunc(share.AnswerWithin, func() { conn.Write(share.Message{Kind: share.Failed, Seq: m.Seq}) })
	time.Sleep(a.chance.upTo(40 * time.Millisecond))
	if a.chance.of(t.late) {
		time.Sleep(a.chance.upTo(6 * time.Second))
	}
	if a.away() {
		return
	}
	answer := a.store.apply(a.member, a.lease, m)
	if a.chance.of(t.twice) {
		time.AfterFunc(a.chance.upTo(90*time.Second), func() { a.store.apply(a.member, a.lease, m) })
	}
	time.Sleep(a.chance.upTo(40 * time.Millisecond))
	if a.chance.of(t.late) {
		time.Sleep(a.chance.upTo(6 * time.Second))
	}
	if a.away() || a.chance.of(t.lost) {
		return
	}
	if a.chance.of(t.failed) {
		answer = share.Message{Kind: share.Failed}
	}
	late.Stop()
	answer.Seq = m.Seq
	conn.Write(answer)
	if a.chance.of(t.twice) {
		time.Sleep(a.chance.upTo(3 * time.Second))
		conn.Write(answer)
	}
}

// read sends what the store has and what changes, until the connection ends or something else is read.
func (a *agent) read(conn *share.Conn, seq uint64, n int, gone <-chan struct{}) {
	current := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		select {
		case <-gone:
			return false
		default:
			return a.reads == n
		}
	}
	for current() {
		time.Sleep(a.chance.upTo(40 * time.Millisecond))
		if a.away() {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if !a.follow(conn, seq, current, gone) {
			return
		}
	}
}

// follow sends what there is and what changes. It returns true if the watch breaks.
func (a *agent) follow(conn *share.Conn, seq uint64, current func() bool, gone <-chan struct{}) bool {
	a.store.mu.Lock()
	first := []share.Message{{Kind: share.Begin, Seq: seq, Revision: a.store.revision}}
	for _, prefix := range []string{"f/", "s/", "a/"} {
		first = append(first, a.store.snapshot(prefix)...)
	}
	first = append(first, share.Message{Kind: share.End, Seq: seq})
	first = append(first, a.store.snapshot("o/")...)
	next := len(a.store.changes)
	a.store.mu.Unlock()
	time.Sleep(a.chance.upTo(40 * time.Millisecond))
	send := func(m share.Message) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return conn.Write(m) == nil
	}
	for _, m := range first {
		if !current() || !send(m) {
			return false
		}
	}
	for {
		a.store.mu.Lock()
		changed, changes := a.store.changed, a.store.changes[next:]
		a.store.mu.Unlock()
		for _, m := range changes {
			if t := a.trouble(); a.chance.of(t.lag) {
				time.Sleep(a.chance.upTo(15 * time.Second))
			} else if a.chance.of(t.broken) {
				return true
			}
			for a.away() && current() {
				time.Sleep(100 * time.Millisecond)
			}
			if !current() || !send(m) {
				return false
			}
			next++
		}
		select {
		case <-changed:
		case <-gone:
			return false
		}
	}
}

// again returns another run of the program.
func (a *agent) again() *agent {
	return &agent{store: a.store, chance: a.chance, trouble: a.trouble, away: a.away}
}
