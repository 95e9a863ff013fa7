package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// pageKeys is how many keys are read at once: with values of 32 KiB, less than maxAnswer.
const pageKeys = 400

// EventKind is what an Event says.
type EventKind int

const (
	// Begin begins a read of everything, as of a revision: what was delivered before no longer counts.
	Begin EventKind = iota
	// Put says that a key has a value.
	Put
	// Delete says that a key is gone.
	Delete
	// End ends a read. From then on, events are changes.
	End
)

// Event is a step of Follow.
type Event struct {
	Kind     EventKind
	Revision int64
	Key      string // "f/NAME", "o/NAME", "s/MEMBER" or "a/MEMBER"
	Value    []byte
}

// errStuck means that changes do not come, though the store answers.
var errStuck = errors.New("changes do not arrive")

// Follow calls tell with floors, outcomes, sessions and acknowledgements: with all that are there, between Begin and
// End, and then with each change, in the order of revisions. After trouble it reads everything again. It returns when
// ctx ends, and with ErrLost if the store went back to an earlier state.
func (m *Member) Follow(ctx context.Context, tell func(Event), trouble func(error)) error {
	defer m.delivered.Store(0)
	for {
		err := m.follow(ctx, tell)
		if ctx.Err() != nil || errors.Is(err, ErrLost) {
			return err
		}
		trouble(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resyncTime):
		}
	}
}

// follow is Follow until something goes wrong.
func (m *Member) follow(ctx context.Context, tell func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-m.stuck:
	default:
	}
	revision, v, err := m.read(ctx, tell)
	if err != nil {
		return err
	}
	from, to := m.followed()
	watch := m.store.client.Watch(clientv3.WithRequireLeader(ctx), from, clientv3.WithRange(to),
		clientv3.WithRev(revision+1), clientv3.WithFragment())
	for {
		select {
		case <-m.stuck:
			return fmt.Errorf("etcd: %w", errStuck)
		case r, ok := <-watch:
			if err := over(r, ok); err != nil {
				return err
			}
			for _, e := range r.Events {
				m.delivered.Store(e.Kv.ModRevision)
				v.take(e)
			}
		}
	}
}

// followed returns the range of keys that Follow reads: what is spent is not in it.
func (m *Member) followed() (from, to string) {
	return m.prefix + "a/", clientv3.GetPrefixRangeEnd(m.prefix + "s/")
}

// view turns what the store has into events.
type view struct {
	prefix string
	tell   func(Event)
	last   map[string]string // of sessions and acknowledgements: renewing them changes nothing
}

// take takes a change. Keys that no member writes are left out.
func (v *view) take(e *clientv3.Event) {
	key := strings.TrimPrefix(string(e.Kv.Key), v.prefix)
	value := string(e.Kv.Value)
	kind, _, _ := strings.Cut(key, "/")
	switch kind {
	case "s", "a":
		if last, ok := v.last[key]; ok && last == value && e.Type == clientv3.EventTypePut {
			return
		}
		v.last[key] = value
	case "f", "o":
	default:
		return
	}
	if e.Type == clientv3.EventTypeDelete {
		delete(v.last, key)
		v.tell(Event{Kind: Delete, Revision: e.Kv.ModRevision, Key: key})
		return
	}
	v.tell(Event{Put, e.Kv.ModRevision, key, e.Kv.Value})
}

// read delivers everything as of one revision, in the order of revisions.
func (m *Member) read(ctx context.Context, tell func(Event)) (revision int64, v *view, err error) {
	var all []*clientv3.Event
	from, to := m.followed()
	for more := true; more; {
		r, err := m.page(ctx, from, to, revision)
		if err != nil {
			return 0, nil, err
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			if strings.HasPrefix(string(kv.Key), m.prefix+"s/") {
				kv.ModRevision = kv.CreateRevision
			}
			all = append(all, &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})
		}
		if more = r.More && len(r.Kvs) > 0; more {
			from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
		}
	}
	if revision < m.delivered.Load() {
		return 0, nil, ErrLost
	}
	slices.SortFunc(all, func(a, b *clientv3.Event) int { return cmp.Compare(a.Kv.ModRevision, b.Kv.ModRevision) })
	v = &view{m.prefix, tell, make(map[string]string)}
	tell(Event{Kind: Begin, Revision: revision})
	for _, e := range all {
		v.take(e)
	}
	m.delivered.Store(revision)
	tell(Event{Kind: End, Revision: revision})
	return revision, v, nil
}

func (m *Member) page(ctx context.Context, from, to string, revision int64) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	return m.store.get(ctx, from, clientv3.WithRange(to), clientv3.WithLimit(pageKeys), clientv3.WithRev(revision))
}
