package etcd

import (
	"context"
	"errors"
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
	delivered := m.delivered.Load()
	r, err := m.try(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) { return m.renew(ctx, run) })
	if err == nil && r.Header.Revision < delivered {
		err = ErrLost
	}
	if errors.Is(err, ErrLost) {
		m.run.Store(nil)
		m.session = session{}
		m.delivered.Store(0)
	}
	if err == nil {
		m.late(time.Now())
	}
	return m.session.made, err
}

func (m *Member) renew(ctx context.Context, run string) (*clientv3.TxnResponse, error) {
	s := &m.session
	if err := m.look(ctx, run); err != nil {
		return nil, err
	}
	granted, err := m.store.client.Grant(ctx, seconds(sessionTime))
	if err != nil {
		return nil, err
	}
	ack := clientv3.OpDelete(m.ackKey())
	if s.ack != "" {
		ack = clientv3.OpPut(m.ackKey(), s.ack, clientv3.WithLease(granted.ID))
	}
	s.known, s.leases = false, append(s.leases, granted.ID)
	r, err := m.store.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(m.sessionKey()), "=", s.at)).
		Then(clientv3.OpPut(m.sessionKey(), run, clientv3.WithLease(granted.ID)), ack).Commit()
	switch {
	case err != nil:
		return nil, err
	case !r.Succeeded:
		return nil, ErrLost
	}
	if s.at == 0 {
		s.made = r.Header.Revision
	}
	s.known, s.at, s.leases = true, r.Header.Revision, []clientv3.LeaseID{granted.ID}
	m.run.Store(&run)
	return r, nil
}

// look finds out what the store has of the member's session, if that is not known.
func (m *Member) look(ctx context.Context, run string) error {
	s := &m.session
	if s.known && s.run == run {
		return nil
	}
	r, err := m.store.client.Txn(ctx).Then(clientv3.OpGet(m.sessionKey()), clientv3.OpGet(m.ackKey())).Commit()
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
	_, err := m.store.client.Txn(ctx).If(m.attached(run)).
		Then(clientv3.OpDelete(m.sessionKey()), clientv3.OpDelete(m.ackKey())).Commit()
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
	s := &m.session
	s.ack = strconv.FormatInt(revision, 10)
	_, err := m.try(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		if err := m.look(ctx, run); err != nil {
			return nil, err
		}
		put := clientv3.OpPut(m.ackKey(), s.ack, clientv3.WithLease(s.leases[len(s.leases)-1]))
		r, err := m.store.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(m.sessionKey()), "=", s.at)).
			Then(put).Commit()
		if err == nil && !r.Succeeded {
			s.known, err = false, ErrNoSession
		}
		return r, err
	})
	return err
}
