package etcd

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	leastStep = 8 * time.Second
	// attachedKeys is how many keys get one lease: etcd removes them all at once when it ends, and does nothing else
	// in that time.
	attachedKeys = 2000
	// slack is what a lease lasts longer than what is attached to it needs: a member may have been paused for as long
	// as its session lasts, and its request may be late.
	slack = sessionTime + 5*time.Second
)

// leases has a few leases for many keys. Each is for keys that may end in the same span of time.
type leases struct {
	client *clientv3.Client
	began  time.Time

	mu  sync.Mutex
	all map[span]*lease
}

// span is the time until end, and as long as step.
type span struct{ step, end time.Duration }

type lease struct {
	done chan struct{} // closed when id or err is there
	id   clientv3.LeaseID
	err  error
	left int // keys that may still be attached
}

// spanFor returns the span in which a key ends that must be kept for a time: at most an eighth of that, or leastStep.
func spanFor(now, keep time.Duration) span {
	step := leastStep
	for 16*step <= keep {
		step *= 2
	}
	return span{step, (now + keep + step - 1) / step * step}
}

// lease returns a lease that lasts for keep, at least. Callers attach so many keys to it at once.
func (l *leases) lease(ctx context.Context, keep time.Duration, keys int) (clientv3.LeaseID, error) {
	now := time.Since(l.began)
	s := spanFor(now, keep)
	l.mu.Lock()
	got := l.all[s]
	first := got == nil || got.left < keys
	if first {
		got = &lease{done: make(chan struct{}), left: attachedKeys}
		l.removeEnded(now)
		l.all[s] = got
	}
	got.left -= keys
	l.mu.Unlock()
	if first {
		l.grant(context.WithoutCancel(ctx), s, got, s.end-now+slack)
	}
	select {
	case <-got.done:
		return got.id, got.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// grant gets a lease from the store. Many callers may wait for it.
func (l *leases) grant(ctx context.Context, s span, got *lease, lasts time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTime/tries)
	defer cancel()
	r, err := l.client.Grant(ctx, seconds(lasts))
	if err != nil {
		got.err = fmt.Errorf("a lease of %v: %w", lasts.Round(time.Second), err)
		l.mu.Lock()
		if l.all[s] == got {
			delete(l.all, s)
		}
		l.mu.Unlock()
	} else {
		got.id = r.ID
	}
	close(got.done)
}

func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// removeEnded removes leases that nothing can need any more.
func (l *leases) removeEnded(now time.Duration) {
	if l.all == nil {
		l.all = make(map[span]*lease)
	}
	for s := range l.all {
		if s.end < now {
			delete(l.all, s)
		}
	}
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
