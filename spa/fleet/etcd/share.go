package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// AnswerTime is how long an operation on a share may take. After that it is unknown whether it happened.
const AnswerTime = 2 * time.Second

var (
	// ErrNoSession means that nothing was done, because this member has no session in the store.
	ErrNoSession = errors.New("the member has no session in the store")
	// ErrTaken means that another gateway has a session under the member's name.
	ErrTaken = errors.New("another gateway is the member of this name")
	// ErrLost means that the store has lost the session, or has gone back to an earlier state: the member must begin
	// anew, with a session and then a read.
	ErrLost = errors.New("the member's session is lost")

	errForgotten = errors.New("the store has forgotten the request id of this nonce")
)

// Member does what one member of a site may do to what the site's members share. The keys are described at the package.
type Member struct {
	store  *Store
	prefix string
	name   string
	memory time.Duration
	leases leases

	delivered atomic.Int64           // the highest revision that Follow has delivered
	run       atomic.Pointer[string] // that has a session
	stuck     chan struct{}          // Follow is late

	mu      sync.Mutex // the session: one operation at a time
	session session
}

// Member returns what the member of this name does at a site. Memory is how long the store remembers a nonce and a
// request id, at least.
func (s *Store) Member(site, name string, memory time.Duration) *Member {
	return &Member{store: s, prefix: s.prefix + "share/" + site + "/", name: name, memory: memory,
		leases: leases{store: s, began: time.Now()}, stuck: make(chan struct{}, 1)}
}

func (m *Member) nonceKey(name string) string   { return m.prefix + "spent/n/" + name }
func (m *Member) idKey(name string) string      { return m.prefix + "spent/i/" + name }
func (m *Member) outcomeKey(name string) string { return m.prefix + "o/" + name }
func (m *Member) floorKey(name string) string   { return m.prefix + "f/" + name }
func (m *Member) sessionKey() string            { return m.prefix + "s/" + m.name }
func (m *Member) ackKey() string                { return m.prefix + "a/" + m.name }

// Spending is the answer to Spend: won if the caller's token has both keys. If another has the nonce, it is spent.
type Spending struct {
	Won, Spent bool
	// Of a repeat, where only the nonce was new: the token of the request id, and the outcome, if there is one.
	Token   string
	Outcome []byte
}

// absent holds if a key does not exist.
func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

// attached holds while the store has the session of this run. A member that was paused cannot write with leases that
// are older than it believes, and a member that others do not wait for can win nothing.
func (m *Member) attached(run string) clientv3.Cmp {
	return clientv3.Compare(clientv3.Value(m.sessionKey()), "=", run)
}

// Spend uses up a nonce and a request id in one transaction. Sent again with the same token, it has the same answer.
func (m *Member) Spend(ctx context.Context, nonce, id, token string) (Spending, error) {
	run, err := m.running()
	if err != nil {
		return Spending{}, err
	}
	n, i, o := m.nonceKey(nonce), m.idKey(id), m.outcomeKey(id)
	r, err := m.commit(ctx, m.memory, 2, func(lease clientv3.LeaseID) clientv3.Op {
		putNonce := clientv3.OpPut(n, token, clientv3.WithLease(lease))
		return clientv3.OpTxn(
			[]clientv3.Cmp{absent(n), absent(i), m.attached(run)},
			[]clientv3.Op{putNonce, clientv3.OpPut(i, token, clientv3.WithLease(lease))},
			[]clientv3.Op{clientv3.OpGet(m.sessionKey()), clientv3.OpGet(n), clientv3.OpGet(i), clientv3.OpGet(o),
				clientv3.OpTxn([]clientv3.Cmp{absent(n), m.attached(run)}, []clientv3.Op{putNonce}, nil)})
	})
	if err != nil {
		return Spending{}, err
	}
	if r.Succeeded {
		return Spending{Won: true}, nil
	}
	value := func(i int) []byte { return headIn((*clientv3.GetResponse)(r.Responses[i].GetResponseRange())) }
	session, ofNonce, ofID, outcome := value(0), value(1), value(2), value(3)
	switch {
	case string(session) != run:
		return Spending{}, ErrNoSession
	case ofNonce != nil && string(ofNonce) != token:
		return Spending{Spent: true}, nil
	case ofID == nil:
		return Spending{}, errForgotten
	case string(ofID) == token:
		return Spending{Won: true}, nil
	}
	return Spending{Token: string(ofID), Outcome: outcome}, nil
}

// Settle records the outcome of a request id for a time, if it has none.
func (m *Member) Settle(ctx context.Context, id string, value []byte, keep time.Duration) error {
	_, err := m.create(ctx, m.outcomeKey(id), value, keep)
	return err
}

// Floor records a floor for a time, if there is none of this name, and returns the revision at which it was recorded.
func (m *Member) Floor(ctx context.Context, name string, value []byte, keep time.Duration) (revision int64, err error) {
	return m.create(ctx, m.floorKey(name), value, keep)
}

// create creates a key unless it is there. It returns the revision at which it was created.
func (m *Member) create(ctx context.Context, key string, value []byte, keep time.Duration) (revision int64, err error) {
	run, err := m.running()
	if err != nil {
		return 0, err
	}
	r, err := m.commit(ctx, keep, 1, func(lease clientv3.LeaseID) clientv3.Op {
		return clientv3.OpTxn([]clientv3.Cmp{absent(key), m.attached(run)},
			[]clientv3.Op{clientv3.OpPut(key, string(value), clientv3.WithLease(lease))},
			[]clientv3.Op{clientv3.OpGet(key)})
	})
	if err != nil {
		return 0, err
	}
	if r.Succeeded {
		return r.Header.Revision, nil
	}
	if there := r.Responses[0].GetResponseRange().Kvs; len(there) > 0 {
		return there[0].CreateRevision, nil
	}
	return 0, ErrNoSession
}

// running returns the member's run, which has a session.
func (m *Member) running() (string, error) {
	run := m.run.Load()
	if run == nil {
		return "", ErrNoSession
	}
	return *run, nil
}

// commit carries out a transaction with a lease that lasts for keep, at least, and attaches so many keys to it.
func (m *Member) commit(ctx context.Context, keep time.Duration, keys int,
	op func(clientv3.LeaseID) clientv3.Op) (r *clientv3.TxnResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	for range 2 {
		var lease clientv3.LeaseID
		if lease, err = m.leases.lease(ctx, keep, keys); err != nil {
			break
		}
		transaction := op(lease)
		if r, err = m.txn(ctx, transaction); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			break
		}
		m.leases.forget(lease)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return r, nil
}

// txn carries out a transaction.
func (m *Member) txn(ctx context.Context, op clientv3.Op) (*clientv3.TxnResponse, error) {
	send := func(ctx context.Context, to *clientv3.Client) (*clientv3.TxnResponse, error) {
		r, err := to.Do(ctx, op)
		return r.Txn(), err
	}
	return ask(ctx, m.store.stores, AnswerTime, send)
}
