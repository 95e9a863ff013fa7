package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/spa/lab"
)

const remembered = 150 * time.Second

// attach returns a member of the site "edge" that has a session, on a connection of its own.
func (c *cluster) attach(t testing.TB, o office, name string) *Member {
	t.Helper()
	m := c.open(t, o, name).Member("edge", name, remembered)
	lab.Eventually(t, name+" gets a session", func() bool { return renew(t, m) == nil })
	return m
}

func renew(t testing.TB, m *Member) error {
	_, err := m.Session(t.Context(), "run of "+m.name)
	return err
}

// spend spends a packet, with the same token until there is an answer.
func spend(t testing.TB, m *Member, nonce, id, token string) Spending {
	for {
		got, err := m.Spend(t.Context(), nonce, id, token)
		if err == nil {
			return got
		}
		select {
		case <-t.Context().Done():
			return got
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestSpendOnce lets three members spend the same packets at the same time, a thousand of them, and then retries of
// them. Each packet is won once, and each retry has one answer, which names the winner.
func TestSpendOnce(t *testing.T) {
	c, o := newCluster(t, 3), newOffice(t)
	members := []*Member{c.attach(t, o, "a"), c.attach(t, o, "b"), c.attach(t, o, "c")}
	defer alive(t, members...)()
	spendAll := func(nonce, id string) (got [3]Spending) {
		var spending sync.WaitGroup
		for i, m := range members {
			spending.Go(func() {
				token := fmt.Sprintf("%s of %s", nonce, m.name)
				got[i] = spend(t, m, nonce, id, token)
				if again := spend(t, m, nonce, id, token); fmt.Sprint(again) != fmt.Sprint(got[i]) {
					t.Errorf("%s: %+v, and then %+v", token, got[i], again)
				}
			})
		}
		spending.Wait()
		return got
	}
	var lines sync.WaitGroup
	for line := range 10 {
		lines.Go(func() {
			for i := range 100 {
				first, retry, id := fmt.Sprintf("n%d-%d", line, i), fmt.Sprintf("r%d-%d", line, i), fmt.Sprint(line, i)
				got := spendAll(first, id)
				winner := slices.IndexFunc(got[:], func(s Spending) bool { return s.Won })
				if winner < 0 {
					t.Fatalf("nobody won: %+v", got)
				}
				token := fmt.Sprintf("%s of %s", first, members[winner].name)
				repeats := 0
				for m, s := range spendAll(retry, id) {
					switch {
					case s.Token == token && s.Outcome == nil && !s.Won && !s.Spent:
						repeats++
					case !s.Spent:
						t.Errorf("%s got %+v for a retry", members[m].name, s)
					}
				}
				got[winner] = Spending{Spent: true}
				if want := (Spending{Spent: true}); repeats != 1 || fmt.Sprint(got) != fmt.Sprint([3]Spending{want, want, want}) {
					t.Errorf("%d repeats; beside the winner %+v", repeats, got)
				}
			}
		})
	}
	lines.Wait()
}

// TestOutcome: a retry gets the outcome that was recorded first, and a floor keeps its revision.
func TestOutcome(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	a, b := c.attach(t, o, "a"), c.attach(t, o, "b")
	ctx := t.Context()
	if s := lab.Value(a.Spend(ctx, "n1", "id", "first"))(t); !s.Won {
		t.Fatalf("got %+v", s)
	}
	lab.Must(t, a.Settle(ctx, "id", []byte("granted"), time.Hour))
	lab.Must(t, b.Settle(ctx, "id", []byte("refused"), time.Hour))
	if s := lab.Value(b.Spend(ctx, "n2", "id", "second"))(t); s.Token != "first" || string(s.Outcome) != "granted" {
		t.Errorf("got %+v", s)
	}
	at := lab.Value(a.Floor(ctx, "f", []byte("x"), time.Hour))(t)
	if again := lab.Value(b.Floor(ctx, "f", []byte("y"), time.Hour))(t); at == 0 || again != at {
		t.Errorf("a floor at %d, and at %d when it is recorded again", at, again)
	}
	for key, keep := range map[string]time.Duration{a.nonceKey("n2"): remembered, a.idKey("id"): remembered,
		a.outcomeKey("id"): time.Hour, a.floorKey("f"): time.Hour} {
		r := lab.Value(a.store.get(ctx, key))(t)
		ttl := lab.Value(a.store.client().TimeToLive(ctx, clientv3.LeaseID(r.Kvs[0].Lease)))(t)
		if left := time.Duration(ttl.TTL) * time.Second; left < keep || left > keep*5/4+slack {
			t.Errorf("%s is kept for %v, want %v", key, left, keep)
		}
	}
}

// TestSpans: a key is kept for as long as it must, and not much longer.
func TestSpans(t *testing.T) {
	for _, keep := range []time.Duration{1, time.Second, time.Minute, 127 * time.Second, time.Hour, 1001 * time.Hour} {
		for _, now := range []time.Duration{0, 1, time.Second, time.Hour, 1e6 * time.Second} {
			s := spanFor(now, keep)
			if over := s.end - now - keep; over < 0 || over >= max(leastStep, keep/8) || s.end%s.step != 0 {
				t.Errorf("at %v, for %v: until %v", now, keep, s.end)
			}
		}
	}
}

// TestFewLeases: many keys share few leases, and not all one.
func TestFewLeases(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	m := c.attach(t, o, "a")
	defer alive(t, m)()
	var spending sync.WaitGroup
	for i := range 3000 {
		spending.Go(func() {
			if got := spend(t, m, fmt.Sprint("n", i), fmt.Sprint("i", i), fmt.Sprint("t", i)); !got.Won {
				t.Errorf("packet %d got %+v", i, got)
			}
		})
	}
	spending.Wait()
	r := lab.Value(m.store.client().Get(t.Context(), m.prefix+"spent/", clientv3.WithPrefix()))(t)
	attached := make(map[int64]int)
	for _, kv := range r.Kvs {
		attached[kv.Lease]++
	}
	most := 0
	for _, n := range attached {
		most = max(most, n)
	}
	if len(r.Kvs) != 6000 || len(attached) < 2 || len(attached) > 10 {
		t.Errorf("%d keys have %d leases, and one has %d keys", len(r.Kvs), len(attached), most)
	}
}

// TestLeaseGone: a lease that the store has lost is replaced.
func TestLeaseGone(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	m := c.attach(t, o, "a")
	for i := range 2 {
		lab.Value(m.Spend(t.Context(), fmt.Sprint("n", i), fmt.Sprint("i", i), "t"))(t)
		for _, l := range lab.Value(m.store.client().Leases(t.Context()))(t).Leases {
			if !slices.Contains(m.session.leases, l.ID) {
				lab.Value(m.store.client().Revoke(t.Context(), l.ID))(t)
			}
		}
	}
}

// TestSession: a name belongs to one gateway, until its session ends; then nothing of it counts.
func TestSession(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	a := c.attach(t, o, "a")
	ctx := t.Context()
	made := lab.Value(a.Session(ctx, "run of a"))(t)
	other := c.open(t, o, "a").Member("edge", "a", remembered)
	if _, err := other.Session(ctx, "another"); !errors.Is(err, ErrTaken) {
		t.Errorf("another gateway of the name: %v", err)
	}
	if _, err := other.Spend(ctx, "n", "i", "t"); !errors.Is(err, ErrNoSession) {
		t.Errorf("it spends: %v", err)
	}
	restarted := c.open(t, o, "a").Member("edge", "a", remembered)
	if at := lab.Value(restarted.Session(ctx, "run of a"))(t); at != made {
		t.Errorf("an agent that was restarted has a session made at %d, want %d", at, made)
	}
	if at := lab.Value(restarted.Session(ctx, "next run of a"))(t); at <= made {
		t.Errorf("a server that was restarted has a session made at %d, and the last was at %d", at, made)
	}
	if _, err := a.Spend(ctx, "n", "i", "t"); !errors.Is(err, ErrNoSession) {
		t.Errorf("the earlier run spends: %v", err)
	}
	if _, err := a.Floor(ctx, "f", []byte("x"), time.Hour); !errors.Is(err, ErrNoSession) {
		t.Errorf("the earlier run raises floors: %v", err)
	}
	lab.Must(t, restarted.Leave(ctx, "next run of a"))
	lab.Value(other.Session(ctx, "another"))(t)

	lab.Eventually(t, "a session ends", func() bool {
		_, err := other.Spend(ctx, "n", "i", "t")
		return errors.Is(err, ErrNoSession)
	})
	if _, err := other.Session(ctx, "another"); !errors.Is(err, ErrLost) {
		t.Errorf("the session that ended: %v", err)
	}
	if at := lab.Value(other.Session(ctx, "another"))(t); at <= made {
		t.Errorf("it was made again at %d", at)
	}
}

// seen is what Follow has delivered to a member.
type seen struct {
	mu     sync.Mutex
	has    map[string]string
	at     int64 // the last revision
	begun  int64 // that of the last read
	begins int
	whole  bool // a read has ended
	wrong  string
	err    error
}

func (s *seen) tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.Kind == Begin:
		s.has, s.at, s.begun, s.whole = make(map[string]string), 0, e.Revision, false
		s.begins++
		return
	case e.Kind == End:
		s.whole = true
	case e.Kind == Put:
		s.has[e.Key] = string(e.Value)
	case e.Kind == Delete:
		delete(s.has, e.Key)
	}
	change := s.whole && e.Revision > s.begun
	if change && e.Revision < s.at || !change && e.Revision > s.begun || !s.whole && strings.HasPrefix(e.Key, "o/") {
		s.wrong = fmt.Sprintf("%+v came after revision %d", e, s.at)
	}
	s.at = e.Revision
}

func watchShare(t testing.TB, m *Member) *seen {
	t.Helper()
	s := new(seen)
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() {
		err := m.Follow(ctx, s.tell, func(err error) { t.Log(m.name, "follows with trouble:", err) })
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = err
	})
	t.Cleanup(func() {
		cancel()
		ended.Wait()
		if s.wrong != "" {
			t.Error(s.wrong)
		}
	})
	return s
}

// get returns the value of a key, once everything has been read.
func (s *seen) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.whole {
		return ""
	}
	return s.has[key]
}

func (s *seen) count() (keys, begins int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.has), s.begins
}

// TestFollowShare: each member sees every floor, outcome, session and acknowledgement, and nothing else.
func TestFollowShare(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	a, b := c.attach(t, o, "a"), c.attach(t, o, "b")
	ctx := t.Context()
	for i := range 3 * pageKeys { // more than one page
		lab.Must(t, a.Settle(ctx, fmt.Sprint(i), []byte("x"), time.Hour))
		if i%100 == 0 {
			lab.Must(t, renew(t, a))
			lab.Must(t, renew(t, b))
		}
	}
	early := watchShare(t, b)
	lab.Eventually(t, "all are read", func() bool { keys, _ := early.count(); return keys == 3*pageKeys+2 })
	lab.Value(a.Spend(ctx, "n", "i", "t"))(t)
	at := lab.Value(a.Floor(ctx, "f", []byte("floor"), time.Hour))(t)
	lab.Value(a.store.client().Put(ctx, a.prefix+"p/x", "noise"))(t)
	lab.Eventually(t, "a floor arrives", func() bool { return early.get("f/f") == "floor" })
	if err := a.Ack(ctx, "run of a", at); !errors.Is(err, errAhead) {
		t.Errorf("acknowledges what it has not seen: %v", err)
	}
	lab.Must(t, b.Ack(ctx, "run of b", at))
	if err := b.Ack(ctx, "another", at); !errors.Is(err, ErrNoSession) {
		t.Errorf("another run acknowledges: %v", err)
	}
	lab.Must(t, renew(t, b))
	late := watchShare(t, a)
	for _, s := range []*seen{early, late} {
		lab.Eventually(t, "the acknowledgement and all else arrive", func() bool {
			keys, _ := s.count()
			return s.get("a/b") == fmt.Sprint(at) && keys == 3*pageKeys+4
		})
		if _, begins := s.count(); begins != 1 || s.get("s/a") != "run of a" {
			t.Errorf("after %d reads the session is %q", begins, s.get("s/a"))
		}
	}
	lab.Must(t, renew(t, a))
	lab.Must(t, a.Leave(ctx, "run of a"))
	lab.Eventually(t, "the session is gone", func() bool { return early.get("s/a") == "" })
}
