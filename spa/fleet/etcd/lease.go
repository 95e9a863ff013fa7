package etcd

import (
	"context"
	"maps"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	leastStep = 8 * time.Second
	// attachedKeys is how many keys get one lease: etcd removes them all at once when it ends, and does nothing else
	// in that time.
	attachedKeys = 2000
	ahead        = 2 * time.Second // before its span begins, a lease is granted
	// slack is what a lease lasts longer than what is attached to it needs: a member may have been paused for as long
	// as its session lasts, and its request may be late.
	slack = sessionTime + 5*time.Second
)

// leases has a few leases for many keys. Each is for keys that may end in the same span of time.
type leases struct {
	store *Store
	began time.Time

	mu  sync.Mutex
	all map[span]*lease
}

// span is the time until end, and as long as step.
type span struct{ step, end time.Duration }

type lease struct {
	done chan struct{} // closed when id or err is there
	id   clientv3.LeaseID
	err  error

	// For the holder of the mutex:
	left int  // keys that may still be attached
	full bool // the next lease is being granted
}

// spanFor returns the span in which a key ends that must be kept for a time: at most an eighth of that, or leastStep.
func spanFor(now, keep time.Duration) span {
	step := leastStep
	for 16*step <= keep {
		step *= 2
	}
	return span{step, (now + keep + step - 1) / step * step}
}

// lease returns a lease that lasts for keep, at least. Callers attach so many keys to it at once. The caller that finds
// a lease full, or its span about to end, gets the next one, while others go on with that which is there.
func (l *leases) lease(ctx context.Context, keep time.Duration, keys int) (clientv3.LeaseID, error) {
	now := time.Since(l.began)
	s := spanFor(now, keep)
	next := span{s.step, s.end + s.step}
	l.mu.Lock()
	got, more := l.all[s], (*lease)(nil)
	switch {
	case got == nil:
		more = l.add(s, now)
		got = more
	case got.left < keys && !got.full:
		got.full = true
		more = newLease()
	case s.end-now-keep < ahead && l.all[next] == nil:
		s = next
		more = l.add(s, now)
	}
	got.left -= keys
	l.mu.Unlock()
	if more != nil && l.grant(context.WithoutCancel(ctx), s, more, s.end-now+slack) {
		return more.id, nil
	}
	select {
	case <-got.done:
		return got.id, got.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func newLease() *lease { return &lease{done: make(chan struct{}), left: attachedKeys} }

// add adds a lease that is yet to be granted, and removes those that nothing can need any more.
func (l *leases) add(s span, now time.Duration) *lease {
	if l.all == nil {
		l.all = make(map[span]*lease)
	}
	maps.DeleteFunc(l.all, func(s span, _ *lease) bool { return s.end < now })
	l.all[s] = newLease()
	return l.all[s]
}

// grant gets a lease from the store, for which other callers may wait, and reports whether it got it.
func (l *leases) grant(ctx context.Context, s span, got *lease, lasts time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	got.id, got.err = l.store.grant(ctx, lasts)
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(got.done)
	switch there := l.all[s]; {
	case got.err == nil:
		l.all[s] = got
	case there == got:
		delete(l.all, s)
	case there != nil:
		there.full = false
	}
	return got.err == nil
}

// forget takes a lease out of use that the store does not know.
func (l *leases) forget(id clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, got := range l.all {
		select {
		case <-got.done:
			if got.id == id {
				delete(l.all, s)
			}
		default:
		}
	}
}
