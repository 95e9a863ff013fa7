package server

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

// A siteStore is what the members of a site need of etcd. It can be away. The agents of members are part of it.
type siteStore struct {
	mu       sync.Mutex
	revision int64
	values   map[string]siteValue
	watchers map[*siteAgent]bool
	away     bool
	holding  bool // it keeps answers back until release
	held     []func()
}

type siteValue struct {
	text           string
	made, changed_ int64
}

func newSiteStore() *siteStore {
	return &siteStore{revision: 1, values: make(map[string]siteValue), watchers: make(map[*siteAgent]bool)}
}

// A siteAgent is the agent of a member.
type siteAgent struct {
	store  *siteStore
	conn   *share.Conn
	net    net.Conn
	member string
	out    chan share.Message
}

// connect starts the agent of a server, until it is closed or the test ends.
func (st *siteStore) connect(t testing.TB, path string) *siteAgent {
	t.Helper()
	conn := lab.Value(net.Dial("unix", path))(t)
	a := &siteAgent{store: st, conn: share.NewConn(conn), net: conn, out: make(chan share.Message, 1024)}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case m := <-a.out:
				_ = a.conn.Write(m)
			case <-ctx.Done():
				return
			}
		}
	})
	all.Go(a.serve)
	t.Cleanup(func() { conn.Close(); cancel(); all.Wait() })
	return a
}

func (a *siteAgent) serve() {
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

func (st *siteStore) take(a *siteAgent, m share.Message) {
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

// release sends the answers that were kept back.
func (st *siteStore) release() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, send := range st.held {
		send()
	}
	st.holding, st.held = false, nil
}

func (st *siteStore) set(change func(st *siteStore)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	change(st)
}

func (st *siteStore) put(key, text string) siteValue {
	st.revision++
	v, there := st.values[key]
	if !there {
		v.made = st.revision
	}
	v.text, v.changed_ = text, st.revision
	st.values[key] = v
	st.tell(share.Message{Kind: share.Event, Key: key, Value: []byte(text), Revision: st.revision})
	return v
}

func (st *siteStore) create(key, text string) siteValue {
	if v, there := st.values[key]; there {
		return v
	}
	return st.put(key, text)
}

func (st *siteStore) remove(key string) {
	if _, there := st.values[key]; there {
		delete(st.values, key)
		st.revision++
		st.tell(share.Message{Kind: share.Event, Key: key, Deleted: true, Revision: st.revision})
	}
}

func (st *siteStore) tell(m share.Message) {
	if strings.ContainsAny(m.Key[:1], "saof") {
		for a := range st.watchers {
			a.out <- m
		}
	}
}

func (st *siteStore) read(a *siteAgent, seq uint64) {
	a.out <- share.Message{Kind: share.Begin, Seq: seq, Revision: st.revision}
	for _, prefix := range []string{"f/", "s/", "a/", "o/"} {
		if prefix == "o/" {
			a.out <- share.Message{Kind: share.End, Seq: seq}
		}
		var events []share.Message
		for key, v := range st.values {
			if strings.HasPrefix(key, prefix) {
				events = append(events, share.Message{Kind: share.Event, Key: key, Value: []byte(v.text),
					Revision: v.changed_})
			}
		}
		slices.SortFunc(events, func(a, b share.Message) int { return int(a.Revision - b.Revision) })
		for _, e := range events {
			a.out <- e
		}
	}
	st.watchers[a] = true
}

func (st *siteStore) apply(a *siteAgent, m share.Message) share.Message {
	session := "s/" + a.member
	switch is, there := st.values[session]; m.Kind {
	case share.AskSession:
		if there && is.text != m.Run.String() {
			return share.Message{Kind: share.Refused}
		}
		return share.Message{Kind: share.InSession, Revision: st.create(session, m.Run.String()).made}
	case share.Leave:
		if there && is.text == m.Run.String() {
			st.end(a.member)
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

// end ends a member's session, as its lease does.
func (st *siteStore) end(member string) {
	st.remove("a/" + member)
	st.remove("s/" + member)
}

func (st *siteStore) spend(m share.Message) share.Message {
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

// members returns how many members have a session and have read everything.
func (st *siteStore) members() int {
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

// slow is longer than a member needs the store to notice anything.
const slow = share.SessionTTL + 10*time.Second
