// Package standin is a store in memory, with the agents that reach it, for tests of gateways that share an address.
package standin

import (
	"context"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"sallyport/spa/fleet/share"
)

// A Store is what the members of one site need of etcd, except that nothing in it expires: see End.
type Store struct {
	mu       sync.Mutex
	revision int64
	values   map[string]value
	watchers map[*Agent]bool
	away     bool
	holding  bool
	held     []func()
	keeps    map[share.Kind]int64 // the most seconds
}

type value struct {
	text          string
	made, changed int64 // revisions
}

// New returns an empty store.
func New() *Store {
	return &Store{revision: 1, values: make(map[string]value), watchers: make(map[*Agent]bool),
		keeps: make(map[share.Kind]int64)}
}

// An Agent carries messages between a member and the store.
type Agent struct {
	store  *Store
	conn   *share.Conn
	net    net.Conn
	member string
	out    chan share.Message
	ended  sync.WaitGroup
	end    context.CancelFunc
	late   bool
	missed []share.Message // events, while it is late
}

// Connect connects an agent to the socket of a member.
func (st *Store) Connect(path string) (*Agent, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &Agent{store: st, conn: share.NewConn(conn), net: conn, out: make(chan share.Message, 1024), end: cancel}
	a.ended.Go(func() {
		for {
			select {
			case m := <-a.out:
				_ = a.conn.Write(m) // the member may be gone
			case <-ctx.Done():
				return
			}
		}
	})
	a.ended.Go(a.serve)
	return a, nil
}

// Close ends the connection. The member's session stays.
func (a *Agent) Close() error {
	err := a.net.Close()
	a.end()
	a.ended.Wait()
	return err
}

func (a *Agent) serve() {
	for {
		m, err := a.conn.Read()
		if err != nil {
			a.store.mu.Lock()
			delete(a.store.watchers, a)
			a.store.mu.Unlock()
			return
		}
		a.store.take(a, m)
	}
}

func (st *Store) take(a *Agent, m share.Message) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if m.Kind == share.Hello {
		a.member = m.Member
		return
	}
	if st.away {
		if m.Kind != share.Leave {
			a.out <- share.Message{Kind: share.Failed, Seq: m.Seq}
		}
		return
	}
	if m.Kind == share.Read {
		st.read(a, m.Seq)
		return
	}
	answer := st.apply(a, m)
	if m.Kind == share.Leave {
		return
	}
	answer.Seq = m.Seq
	if st.holding && m.Kind == share.Spend {
		st.held = append(st.held, func() { a.out <- answer })
		return
	}
	a.out <- answer
}

// Away makes the store unreachable, or reachable again.
func (st *Store) Away(is bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.away = is
}

// Hold keeps answers to spends back, until Release.
func (st *Store) Hold() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.holding = true
}

// Held returns how many answers are kept back.
func (st *Store) Held() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.held)
}

// Release sends the answers that were kept back.
func (st *Store) Release() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, send := range st.held {
		send()
	}
	st.holding, st.held = false, nil
}

// Backup returns what sets the store back to what it is now. Agents must connect again then.
func (st *Store) Backup() (restore func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	revision, values := st.revision, maps.Clone(st.values)
	return func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.revision, st.values = revision, maps.Clone(values)
	}
}

// Late keeps events back from an agent, or sends it those that were kept back.
func (st *Store) Late(a *Agent, is bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, m := range a.missed {
		a.out <- m
	}
	a.late, a.missed = is, nil
}

// Keeps returns the most seconds for which a request of this kind wants something kept; 0: there was no request.
func (st *Store) Keeps(kind share.Kind) int64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.keeps[kind]
}

// Again reports all that is stored below a prefix to the agents once more, as if it were new.
func (st *Store) Again(prefix string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for key, v := range st.values {
		if strings.HasPrefix(key, prefix) {
			st.put(key, v.text)
		}
	}
}

func (st *Store) put(key, text string) value {
	st.revision++
	v, there := st.values[key]
	if !there {
		v.made = st.revision
	}
	v.text, v.changed = text, st.revision
	st.values[key] = v
	st.tell(share.Message{Kind: share.Event, Key: key, Value: []byte(text), Revision: st.revision})
	return v
}

func (st *Store) create(key, text string) value {
	if v, there := st.values[key]; there {
		return v
	}
	return st.put(key, text)
}

func (st *Store) remove(key string) {
	if _, there := st.values[key]; there {
		delete(st.values, key)
		st.revision++
		st.tell(share.Message{Kind: share.Event, Key: key, Deleted: true, Revision: st.revision})
	}
}

func (st *Store) tell(m share.Message) {
	if strings.ContainsAny(m.Key[:1], "saof") {
		for a := range st.watchers {
			if a.late {
				a.missed = append(a.missed, m)
				continue
			}
			a.out <- m
		}
	}
}

func (st *Store) read(a *Agent, seq uint64) {
	a.out <- share.Message{Kind: share.Begin, Seq: seq, Revision: st.revision}
	for _, prefix := range []string{"f/", "s/", "a/", "o/"} {
		if prefix == "o/" {
			a.out <- share.Message{Kind: share.End, Seq: seq}
		}
		var events []share.Message
		for key, v := range st.values {
			if strings.HasPrefix(key, prefix) {
				events = append(events, share.Message{Kind: share.Event, Key: key, Value: []byte(v.text),
					Revision: v.changed})
			}
		}
		slices.SortFunc(events, func(a, b share.Message) int { return int(a.Revision - b.Revision) })
		for _, e := range events {
			a.out <- e
		}
	}
	st.watchers[a] = true
}

func (st *Store) apply(a *Agent, m share.Message) share.Message {
	session := "s/" + a.member
	st.keeps[m.Kind] = max(st.keeps[m.Kind], m.Seconds)
	switch is, there := st.values[session]; m.Kind {
	case share.AskSession:
		if there && is.text != m.Run.String() {
			return share.Message{Kind: share.Refused}
		}
		return share.Message{Kind: share.InSession, Revision: st.create(session, m.Run.String()).made}
	case share.Leave:
		if there && is.text == m.Run.String() {
			st.leave(a.member)
		}
	case share.Ack:
		if !there || is.text != m.Run.String() {
			return share.Message{Kind: share.Failed}
		}
		st.put("a/"+a.member, strconv.FormatInt(m.Revision, 10))
	case share.Settle:
		st.create("o/"+m.ID.String(), string(m.Value))
	case share.PutFloor:
		return share.Message{Kind: share.Done, Revision: st.create("f/"+m.ID.String(), string(m.Value)).made}
	case share.Spend:
		return st.spend(m)
	}
	return share.Message{Kind: share.Done}
}

// End ends a member's session, as its lease does.
func (st *Store) End(member string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.leave(member)
}

func (st *Store) leave(member string) {
	st.remove("a/" + member)
	st.remove("s/" + member)
}

func (st *Store) spend(m share.Message) share.Message {
	nonce, mine := "n/"+m.Nonce.String(), m.Token.String()
	if v, there := st.values[nonce]; there && v.text != mine {
		return share.Message{Kind: share.Spent}
	}
	st.create(nonce, mine)
	owner := st.create("i/"+m.ID.String(), mine).text
	if owner == mine {
		return share.Message{Kind: share.Won}
	}
	answer := share.Message{Kind: share.Repeat, Value: []byte(st.values["o/"+m.ID.String()].text)}
	answer.Token, _ = share.ParseToken(owner)
	return answer
}

// Members returns how many members have a session and have read everything.
func (st *Store) Members() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := 0
	for key := range st.values {
		if strings.HasPrefix(key, "a/") {
			n++
		}
	}
	return n
}
