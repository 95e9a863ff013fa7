package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const mostRepeats = 200

// errLeft means that a store did not answer while another one did.
var errLeft = errors.New("another store is used: this one did not answer")

// stores has a connection to each of the stores that are one etcd. All requests go to one of them, for as long as it
// answers. etcd's own client would take turns: of several stores, one that accepts requests and does not answer them,
// because it hangs or is cut off from the others, would get its share of them forever.
type stores struct {
	all     []*endpoint
	repeats budget

	mu   sync.Mutex
	used *use
}

// endpoint is one of the stores.
type endpoint struct {
	client  *clientv3.Client
	answers atomic.Uint64
}

// use is the time in which one store is used.
type use struct {
	index int
	left  context.Context // ends with it
	end   context.CancelFunc
}

func newUse(index int) *use {
	u := &use{index: index}
	u.left, u.end = context.WithCancel(context.Background())
	return u
}

// connect returns the stores of a configuration. It does not wait for them.
func connect(c Config) (*stores, error) {
	s := new(stores)
	for _, address := range c.Endpoints {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, TLS: c.TLS, DialKeepAliveTime: keepAlive,
			DialKeepAliveTimeout: keepAlive, MaxCallRecvMsgSize: maxAnswer, Logger: zap.NewNop()})
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.all = append(s.all, &endpoint{client: client})
	}
	if len(s.all) == 0 {
		return nil, clientv3.ErrNoAvailableEndpoints
	}
	s.used = newUse(rand.IntN(len(s.all))) // not all gateways the same
	return s, nil
}

func (s *stores) close() error {
	var errs []error
	for _, e := range s.all {
		errs = append(errs, e.client.Close())
	}
	return errors.Join(errs...)
}

// reconnect ends the wait before the next attempt to connect, which can be two minutes after a store was away for long.
func (s *stores) reconnect() {
	for _, e := range s.all {
		e.client.ActiveConnection().ResetConnectBackoff()
	}
}

// current returns the store that is used.
func (s *stores) current() *use {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// leave uses another store instead of the one that was used, unless that has happened already.
func (s *stores) leave(was *use, index int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used != was || index == was.index {
		return
	}
	s.used = newUse(index)
	was.end()
}

// next uses the next store after the one that was used.
func (s *stores) next(was *use) { s.leave(was, (was.index+1)%len(s.all)) }

// afterWatch uses the next store after a watch at one, unless ctx has ended it.
func (s *stores) afterWatch(ctx context.Context, at *use) {
	if ctx.Err() == nil {
		s.next(at)
	}
}

// watch watches keys at a store while it is used. The channel is closed if another is used, and if the store does not
// begin to watch.
func (s *stores) watch(ctx context.Context, at *use, key string, options ...clientv3.OpOption) clientv3.WatchChan {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	stop := context.AfterFunc(at.left, cancel)
	context.AfterFunc(ctx, func() { stop() })
	begin := time.AfterFunc(patience, cancel)
	defer begin.Stop()
	return s.all[at.index].client.Watch(ctx, key, options...)
}

// over returns an error if a watch has ended, or was compacted: read again.
func over(at *use, r clientv3.WatchResponse, ok bool) error {
	err := r.Err()
	switch {
	case err == nil && ok:
		return nil
	case at.left.Err() != nil:
		err = errLeft
	}
	return fmt.Errorf("etcd: the watch ended: %w", cmp.Or(err, context.Canceled))
}

// asking is a request that can be sent to several stores.
type asking[T any] struct {
	stores  *stores
	used    *use   // when it began
	before  uint64 // what that store had answered
	send    func(context.Context, *clientv3.Client) (T, error)
	answers chan answer[T]
	sent    int
	sending sync.WaitGroup
}

type answer[T any] struct {
	from *endpoint
	got  T
	err  error
}

// ask sends a request that can be repeated to the store that is used, and to the next if it fails, or has no answer for
// a quarter of the time that the request may take. The first answer counts. If the store that is used has answered
// nothing since, the one that did is used from now on.
func ask[T any](ctx context.Context, s *stores, within time.Duration,
	send func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	used, most := s.current(), max(2, len(s.all))
	a := &asking[T]{stores: s, used: used, before: s.all[used.index].answers.Load(), send: send,
		answers: make(chan answer[T], most)}
	defer a.sending.Wait()
	defer cancel()
	a.begin(ctx)
	again := time.NewTicker(within / 4)
	defer again.Stop()
	for failed := 0; ; {
		select {
		case got := <-a.answers:
			if got.err == nil {
				a.answered(got.from)
				return got.got, nil
			}
			failed++
			if a.sent < most && ctx.Err() == nil && !errors.Is(got.err, rpctypes.ErrTooManyRequests) {
				a.begin(ctx)
			} else if failed == a.sent {
				return got.got, got.err
			}
		case <-again.C:
			if a.sent < len(s.all) && s.repeats.begin() {
				defer s.repeats.end()
				a.begin(ctx)
			}
		}
	}
}

// begin sends the request to the next store.
func (a *asking[T]) begin(ctx context.Context) {
	to := a.stores.all[(a.used.index+a.sent)%len(a.stores.all)]
	a.sent++
	a.sending.Go(func() {
		got, err := a.send(ctx, to.client)
		a.answers <- answer[T]{to, got, err}
	})
}

// answered notes that a store has answered.
func (a *asking[T]) answered(from *endpoint) {
	from.answers.Add(1)
	if a.stores.all[a.used.index].answers.Load() == a.before {
		a.stores.leave(a.used, slices.Index(a.stores.all, from))
	}
}

// budget limits how many requests are repeated at a time: stores that are slow under their load must not get twice as
// much.
type budget struct{ n atomic.Int64 }

func (b *budget) begin() bool {
	if b.n.Add(1) > mostRepeats {
		b.n.Add(-1)
		return false
	}
	return true
}

func (b *budget) end() { b.n.Add(-1) }
