package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
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
	// End ends a read, but for the outcomes, which follow. After them come changes.
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

// Follow calls tell with all that is there as of one revision: between Begin and End the floors, the sessions and the
// acknowledgements, and then the outcomes. Then it calls tell with each change, in the order of revisions. After
// trouble it reads everything again. It returns when ctx ends, and with ErrLost if the store went back to an earlier
// state.
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
	at := m.store.current()
	defer m.store.afterWatch(ctx, at)
	from, to := m.followed()
	watch := m.store.watch(ctx, at, from, clientv3.WithRange(to), clientv3.WithRev(revision+1), clientv3.WithFragment())
	for {
		select {
		case <-m.stuck:
			return fmt.Errorf("etcd: %w", errStuck)
		case r, ok := <-watch:
			if err := over(at, r, ok); err != nil {
				return err
			}
			for _, e := range r.Events {
				m.delivered.Store(e.Kv.ModRevision)
				v.take(e)
			}
		}
	}
}

// followed returns the range of keys that Follow watches: what is spent is not in it.
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

// read delivers everything as of one revision, and returns that.
func (m *Member) read(ctx context.Context, tell func(Event)) (revision int64, v *view, err error) {
	v = &view{m.prefix, tell, make(map[string]string)}
	for _, kind := range []string{"f/", "s/", "a/", "o/"} {
		all, at, err := m.all(ctx, m.prefix+kind, revision)
		switch {
		case err != nil:
			return 0, nil, err
		case revision > 0:
		case at < m.delivered.Load():
			return 0, nil, ErrLost
		default:
			revision = at
			tell(Event{Kind: Begin, Revision: revision})
		}
		if kind == "o/" {
			m.delivered.Store(revision)
			tell(Event{Kind: End, Revision: revision})
		}
		for _, kv := range all {
			v.take(&clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})
		}
	}
	return revision, v, nil
}

// all returns all keys with a prefix in the order of revisions, as of a revision: the present one, if it is 0.
func (m *Member) all(ctx context.Context, prefix string, revision int64) (all []*mvccpb.KeyValue, at int64, err error) {
	from, to := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for at = revision; ; {
		r, err := m.page(ctx, from, to, at)
		if err != nil {
			return nil, 0, err
		}
		if at == 0 {
			at = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			if strings.HasPrefix(string(kv.Key), m.prefix+"s/") {
				kv.ModRevision = kv.CreateRevision
			}
			all = append(all, kv)
		}
		if !r.More || len(r.Kvs) == 0 {
			break
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	slices.SortFunc(all, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	return all, at, nil
}

func (m *Member) page(ctx context.Context, from, to string, revision int64) (*clientv3.GetResponse, error) {
	return m.store.getWithin(ctx, AnswerTime, from, clientv3.WithRange(to), clientv3.WithLimit(pageKeys),
		clientv3.WithRev(revision))
}
