package member_test

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sallyport/spa/fleet/share"
)

// A store is what members need of etcd: it creates keys that are absent, counts revisions, and ends leases.
type store struct {
	mu       sync.Mutex
	revision int64
	items    map[string]*item
	changes  []share.Message // of what members watch, in order
	changed  chan struct{}   // closed at each change
}

type item struct {
	value           string
	created, change int64
	until           time.Time
}

func newStore() *store {
	return &store{items: make(map[string]*item), changed: make(chan struct{}), revision: 1}
}

// get returns what is there and has not expired.
func (s *store) get(key string) *item {
	if it, ok := s.items[key]; ok && time.Now().Before(it.until) {
		return it
	}
	return nil
}

func (s *store) put(key, value string, lease time.Duration) *item {
	it := s.get(key)
	s.revision++
	if it == nil {
		it = &item{created: s.revision}
		s.items[key] = it
	}
	it.value, it.change = value, s.revision
	s.keep(key, it, lease)
	s.report(share.Message{Kind: share.Event, Key: key, Value: []byte(value), Revision: s.revision})
	return it
}

// create puts what is absent.
func (s *store) create(key, value string, lease time.Duration) *item {
	if it := s.get(key); it != nil {
		return it
	}
	return s.put(key, value, lease)
}

// keep ends the key after its lease.
func (s *store) keep(key string, it *item, lease time.Duration) {
	it.until = time.Now().Add(lease)
	time.AfterFunc(lease, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.items[key] == it && !time.Now().Before(it.until) {
			s.remove(key)
		}
	})
}

func (s *store) remove(key string) {
	delete(s.items, key)
	s.revision++
	s.report(share.Message{Kind: share.Event, Key: key, Deleted: true, Revision: s.revision})
}

func (s *store) report(change share.Message) {
	if strings.ContainsAny(change.Key[:1], "saof") {
		s.changes = append(s.changes, change)
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// snapshot returns what there is below a prefix, in the order of revisions.
func (s *store) snapshot(prefix string) []share.Message {
	var all []share.Message
	for key, it := range s.items {
		if strings.HasPrefix(key, prefix) && s.get(key) != nil {
			all = append(all, share.Message{Kind: share.Event, Key: key, Value: []byte(it.value), Revision: it.change})
		}
	}
	slices.SortFunc(all, func(a, b share.Message) int { return int(a.Revision - b.Revision) })
	return all
}

// apply carries out a request.
func (s *store) apply(member string, lease time.Duration, m share.Message) share.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.Kind {
	case share.AskSession:
		return s.session(member, m)
	case share.Spend:
		return s.spend(lease, m)
	case share.Settle:
		s.create("o/"+m.ID.String(), string(m.Value), time.Duration(m.Seconds)*time.Second)
		return share.Message{Kind: share.Done}
	case share.PutFloor:
		it := s.create("f/"+m.ID.String(), string(m.Value), time.Duration(m.Seconds)*time.Second)
		return share.Message{Kind: share.Done, Revision: it.created}
	case share.Ack:
		it := s.get("s/" + member)
		if it == nil || it.value != m.Run.String() {
			return share.Message{Kind: share.Failed}
		}
		s.put("a/"+member, strconv.FormatInt(m.Revision, 10), time.Until(it.until))
		return share.Message{Kind: share.Done}
	}
	panic(m.Kind)
}

// session makes a session or keeps it, and what depends on it.
func (s *store) session(member string, m share.Message) share.Message {
	key := "s/" + member
	it := s.get(key)
	switch {
	case it == nil:
		it = s.put(key, m.Run.String(), share.SessionTTL)
	case it.value != m.Run.String():
		return share.Message{Kind: share.Refused}
	default:
		s.keep(key, it, share.SessionTTL)
		if ack := s.get("a/" + member); ack != nil {
			s.keep("a/"+member, ack, share.SessionTTL)
		}
	}
	return share.Message{Kind: share.InSession, Revision: it.created}
}

// leave ends a session of this run.
func (s *store) leave(member string, run share.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.get("s/" + member); it == nil || it.value != run.String() {
		return
	}
	for _, key := range []string{"a/" + member, "s/" + member} {
		if s.get(key) != nil {
			s.remove(key)
		}
	}
}

// spend is the transaction.
func (s *store) spend(lease time.Duration, m share.Message) share.Message {
	nonce, id := s.get("n/"+m.Nonce.String()), s.get("i/"+m.ID.String())
	mine := m.Token.String()
	if nonce != nil && nonce.value != mine {
		return share.Message{Kind: share.Spent}
	}
	s.create("n/"+m.Nonce.String(), mine, lease)
	if id == nil && nonce == nil {
		id = s.create("i/"+m.ID.String(), mine, lease)
	}
	switch {
	case id == nil: // forgotten since
		return share.Message{Kind: share.Failed}
	case id.value == mine:
		return share.Message{Kind: share.Won}
	}
	answer := share.Message{Kind: share.Repeat}
	answer.Token, _ = share.ParseToken(id.value)
	if o := s.get("o/" + m.ID.String()); o != nil {
		answer.Value = []byte(o.value)
	}
	return answer
}
