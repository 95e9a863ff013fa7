package member

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
)

const (
	retryEvery = 500 * time.Millisecond // of outcomes, floors and acknowledgements that failed
	logEvery   = 10 * time.Second       // of the same line
)

// A Member is this gateway among those of its site. See the package documentation.
type Member struct {
	config Config
	me     share.Token // this run
	prefix string
	wake   chan struct{} // the goroutine of Run looks at its deadlines again

	mu      sync.Mutex // guards everything below; nothing waits while it is held
	running bool
	seq     uint64 // of the last request
	link    *link  // nil: no agent
	todo    tasks

	asked     time.Time // when the answer that made or kept the session was asked for; zero: there is none
	session   int64     // the revision at which it was made
	epoch     int       // changes when the session may have been lost
	joined    bool      // since this epoch began, all floors were read
	ill       time.Time // until then no session is asked for: a floor could not be raised
	refused   time.Time // since when another run has the session; zero: it has not
	nextAsk   time.Time
	raised    int64 // floors up to this revision are in force
	installed int64 // outcomes up to this one are installed
	wanted    int64 // revision to acknowledge
	acked     int64 // revision that was acknowledged in this epoch
	nextSend  time.Time

	peers    map[string]peer
	revision int64 // of peers

	queues map[keys.ID][]*Attempt // in order; the first is sent, or will be once the member is alive
	order  *list.List             // of those without an answer, by their deadlines
	queued int                    // packets in queues
	given  givenUp

	ends     []*ending
	later    []later
	settling *list.List // of *settlement
	counts   Counts
	logged   map[string]time.Time // by the line
}

type peer struct {
	run   share.Token
	acked int64
}

// New returns a member. It does nothing before Run.
func New(c Config) *Member {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("site", c.Site)
	m := &Member{config: c, prefix: share.Prefix(c.Fleet, c.Site), wake: make(chan struct{}, 1),
		queues: make(map[keys.ID][]*Attempt), order: list.New(), settling: list.New(),
		given: givenUp{until: make(map[share.Token]time.Time)}, logged: make(map[string]time.Time)}
	m.todo.changed.L = &m.mu
	rand.Read(m.me[:])
	var first [8]byte
	rand.Read(first[:6])
	m.seq = binary.LittleEndian.Uint64(first[:]) // an answer to another run is not taken for one to this
	return m
}

// SetLocal changes Config.Local.
func (m *Member) SetLocal(is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.config.Local = is
}

// Run is a member from then on, through the connections to agents that it gets: each replaces the one before. It
// returns once ctx ended and nothing that it started runs any more.
func (m *Member) Run(ctx context.Context, agents <-chan net.Conn) {
	var worker, all sync.WaitGroup
	m.mu.Lock()
	m.running = true
	m.mu.Unlock()
	worker.Go(m.work)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case conn, ok := <-agents:
			if !ok {
				agents = nil
				continue
			}
			m.connect(conn, &all)
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			continue
		}
		if next := m.tick(time.Now()); next > 0 {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
	}
	m.stop(&worker, &all)
}

// stop ends what Run has started, and then the session: others need not wait for a member that decides nothing.
func (m *Member) stop(worker, all *sync.WaitGroup) {
	m.mu.Lock()
	m.running, m.joined = false, false
	m.todo.list = nil
	m.todo.changed.Broadcast()
	l := m.link
	m.link, m.ends, m.later = nil, nil, nil
	clear(m.queues)
	m.order.Init()
	m.queued = 0
	m.mu.Unlock()
	worker.Wait()
	if l != nil {
		l.leave(m.me)
	}
	all.Wait()
}

// tick does what is due, and returns the time until something else is; 0 if nothing will be.
func (m *Member) tick(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lapse(now)
	m.expire(now)
	m.expireEnds(now)
	if m.link != nil && !now.Before(m.nextAsk) && !now.Before(m.ill) {
		m.nextAsk = now.Add(share.SessionEvery)
		m.ask(now)
	}
	if !now.Before(m.nextSend) {
		m.nextSend = now.Add(retryEvery)
		m.sendAck(now)
		m.sendEnds(now)
		m.sendSettlements(now)
	}
	var due []time.Time
	if m.link != nil {
		due = append(due, m.nextAsk)
		if m.ill.After(m.nextAsk) {
			due[0] = m.ill
		}
	}
	if first := m.order.Front(); first != nil {
		due = append(due, first.Value.(*Attempt).deadline)
	}
	if len(m.ends) > 0 || m.settling.Len() > 0 || m.joined && m.wanted > m.acked {
		due = append(due, m.nextSend)
	}
	if len(due) == 0 {
		return 0
	}
	return max(time.Millisecond, slices.MinFunc(due, time.Time.Compare).Sub(now))
}

func (m *Member) woken() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// since returns how much time has passed by the monotonic clock or by the wall clock, whichever says more: only the
// wall clock counts the time in which the machine was suspended.
func since(at, now time.Time) time.Duration { return max(now.Sub(at), now.Round(0).Sub(at.Round(0))) }

// Alive reports whether the other members wait for this one before they answer a close: it has a session by its own
// clock, and every floor from before it. Only then may it act.
func (m *Member) Alive() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.aliveAt(time.Now())
}

func (m *Member) aliveAt(now time.Time) bool {
	return m.joined && !m.asked.IsZero() && since(m.asked, now) < share.SessionUse
}

// lapse notices that the session has ended by this member's clock.
func (m *Member) lapse(now time.Time) {
	if !m.joined || m.aliveAt(now) {
		return
	}
	m.apart()
	m.log(slog.LevelWarn, "no answer from the store: apart from the other members of the site")
}

// apart begins a new epoch: from now on there may be floors that this member has not read.
func (m *Member) apart() {
	if m.joined {
		m.counts.Lapses++
	}
	m.epoch++
	m.joined, m.acked = false, 0
}

// Status returns what the member knows now.
func (m *Member) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Connected: m.link != nil, Alive: m.aliveAt(time.Now()), Refused: !m.refused.IsZero(), Revision: m.revision,
		Waiting: m.queued, Unsettled: m.settling.Len(), Ending: len(m.ends) + len(m.later), Counts: m.counts}
	for _, name := range slices.SortedFunc(maps.Keys(m.peers), strings.Compare) {
		s.Peers = append(s.Peers, Peer{Name: name, Acknowledged: m.peers[name].acked})
	}
	return s
}

// Warn logs a warning, but the same text no more than once in a while.
func (m *Member) Warn(text string, more ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log(slog.LevelWarn, text, more...)
}

// log logs, but the same no more than once in a while: an agent may make it happen all the time.
func (m *Member) log(level slog.Level, text string, more ...any) {
	now := time.Now()
	if at, ok := m.logged[text]; ok && since(at, now) < logEvery {
		return
	}
	m.logged[text] = now
	m.config.Log.Log(context.Background(), level, text, more...)
}

// said is what a run of a member has written into the store: its token, the time by its clock, and the text.
type said struct {
	run  share.Token
	at   time.Time
	text []byte
}

const saidHead = len(share.Token{}) + 8 // bytes before the text

// seal seals what this run says now, for a place in the store.
func (m *Member) seal(place string, text []byte, now time.Time) []byte {
	all := append(make([]byte, 0, saidHead+len(text)), m.me[:]...)
	all = binary.BigEndian.AppendUint64(all, uint64(now.UnixNano()))
	return m.config.Key.Seal(m.prefix+place, append(all, text...))
}

// open opens what seal returned, at this run or another.
func (m *Member) open(place string, sealed []byte) (s said, err error) {
	all, err := m.config.Key.Open(m.prefix+place, sealed)
	if err != nil || len(all) < saidHead {
		return s, share.ErrSealed
	}
	at := binary.BigEndian.Uint64(all[len(s.run):])
	return said{share.Token(all[:len(s.run)]), time.Unix(0, int64(at)), all[saidHead:]}, nil
}

// seconds rounds up.
func seconds(d time.Duration) int64 {
	return min(share.MaxSeconds, int64((d+time.Second-1)/time.Second))
}
