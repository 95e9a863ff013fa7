package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	sessionTime = 10 * time.Second // for which a session lives without being renewed
	lateTime    = 10 * time.Second // for which Follow may not deliver what was written
)

// session is what is known of the member's session in the store. Renewing it moves it to a new lease. To renew the
// lease would be one request less, but the answer could come from a store that no longer leads the others. And so it
// shows if the store was restored from a backup, because the session has an earlier lease there.
type session struct {
	run    string
	known  bool               // at is right: no answer was lost
	at     int64              // the last revision of its key; 0: there is none
	made   int64              // the first
	leases []clientv3.LeaseID // that it may have, the newest last
	ack    string             // the last acknowledgement

	due   int64 // a revision of its key that Follow should have delivered
	since time.Time
}

// Session makes or renews the session of a run of this member. After it returned nil, the session lives for 10 seconds
// from when it was called. It returns the revision at which the session was made. ErrTaken means that another gateway
// has the name. ErrLost means that a session of this run had ended, or that the store went back: call Session again,
// and then Follow.
func (m *Member) Session(ctx context.Context, run string) (made int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	delivered := m.delivered.Load()
	at, err := m.renew(ctx, run)
	switch {
	case err == nil && at < delivered, errors.Is(err, ErrLost):
		m.run.Store(nil)
		m.session = session{}
		m.delivered.Store(0)
		return 0, ErrLost
	case errors.Is(err, ErrTaken):
		return 0, err
	case err != nil:
		m.store.reconnect()
		return 0, fmt.Errorf("etcd: %w", err)
	}
	m.late(time.Now())
	return m.session.made, nil
}

// renew makes the session or moves it to a new lease, and returns the revision at which it did.
func (m *Member) renew(ctx context.Context, run string) (revision int64, err error) {
	s, key := &m.session, m.sessionKey()
	if err := m.look(ctx, run); err != nil {
		return 0, err
	}
	lease, err := m.store.grant(ctx, sessionTime)
	if err != nil {
		return 0, err
	}
	ack := clientv3.OpDelete(m.ackKey())
	if s.ack != "" {
		ack = clientv3.OpPut(m.ackKey(), s.ack, clientv3.WithLease(lease))
	}
	s.known, s.leases = false, append(s.leases, lease)
	r, err := m.txn(ctx, clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", s.at)},
		[]clientv3.Op{clientv3.OpPut(key, run, clientv3.WithLease(lease)), ack, clientv3.OpGet(key)},
		[]clientv3.Op{clientv3.OpGet(key)}))
	if err != nil {
		return 0, err
	}
	got := r.Responses[len(r.Responses)-1].GetResponseRange().Kvs
	if len(got) == 0 || clientv3.LeaseID(got[0].Lease) != lease { // not even by a request that was sent twice
		return 0, ErrLost
	}
	s.known, s.at, s.made, s.leases = true, got[0].ModRevision, got[0].CreateRevision, []clientv3.LeaseID{lease}
	m.run.Store(&run)
	return s.at, nil
}

// look finds out what the store has of the member's session, if that is not known.
func (m *Member) look(ctx context.Context, run string) error {
	s := &m.session
	if s.known && s.run == run {
		return nil
	}
	r, err := m.txn(ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(m.sessionKey()), clientv3.OpGet(m.ackKey())},
		nil))
	if err != nil {
		return err
	}
	got, ack := r.Responses[0].GetResponseRange().Kvs, r.Responses[1].GetResponseRange().Kvs
	has := m.run.Load()
	switch {
	case len(got) == 0 && has != nil && *has == run:
		return ErrLost
	case len(got) == 0:
		*s = session{run: run, known: true}
		return nil
	case string(got[0].Value) == run && s.run == run && !slices.Contains(s.leases, clientv3.LeaseID(got[0].Lease)):
		return ErrLost
	case string(got[0].Value) == run && s.run != run && len(ack) > 0: // of an earlier run of this program
		s.ack = string(ack[0].Value)
	case string(got[0].Value) == run:
	case string(got[0].Value) == s.run: // of an earlier run of the gateway here
		if err := m.remove(ctx, s.run); err != nil {
			return err
		}
		*s = session{run: run, known: true}
		return nil
	default:
		return ErrTaken
	}
	s.run, s.known, s.at, s.made = run, true, got[0].ModRevision, got[0].CreateRevision
	s.leases = []clientv3.LeaseID{clientv3.LeaseID(got[0].Lease)}
	return nil
}

// Leave ends the session of a run, if it has one.
func (m *Member) Leave(ctx context.Context, run string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	m.run.Store(nil)
	m.session = session{}
	return m.remove(ctx, run)
}

func (m *Member) remove(ctx context.Context, run string) error {
	_, err := m.txn(ctx, clientv3.OpTxn([]clientv3.Cmp{m.attached(run)},
		[]clientv3.Op{clientv3.OpDelete(m.sessionKey()), clientv3.OpDelete(m.ackKey())}, nil))
	return err
}

// late has Follow read everything again if it has not delivered the session's renewal for a while. The part of the
// store that it watches may lag, or wait for revisions of before it was restored.
func (m *Member) late(now time.Time) {
	s := &m.session
	if delivered := m.delivered.Load(); delivered == 0 || delivered >= s.due {
		s.due, s.since = s.at, now
	} else if now.Sub(s.since) > lateTime {
		s.due = 0
		select {
		case m.stuck <- struct{}{}:
		default:
		}
	}
}

// errAhead means that an acknowledgement is of a revision that Follow has not delivered.
var errAhead = errors.New("this revision has not been delivered")

// Ack says that every floor up to a revision, which Follow has delivered, is in force at this member.
func (m *Member) Ack(ctx context.Context, run string, revision int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if has, err := m.running(); err != nil || has != run {
		return ErrNoSession
	}
	if revision > m.delivered.Load() {
		return errAhead
	}
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	s := &m.session
	s.ack = strconv.FormatInt(revision, 10)
	if err := m.look(ctx, run); err != nil {
		return err
	}
	r, err := m.txn(ctx, clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(m.sessionKey()), "=", s.at)},
		[]clientv3.Op{clientv3.OpPut(m.ackKey(), s.ack, clientv3.WithLease(s.leases[len(s.leases)-1]))}, nil))
	if err == nil && !r.Succeeded {
		s.known, err = false, ErrNoSession
	}
	return err
}
