package etcd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// alive renews sessions as servers do, until the function that it returns is called. A member whose session was lost
// makes another.
func alive(t testing.TB, members ...*Member) (stop func()) {
	done := make(chan struct{})
	var renewing sync.WaitGroup
	for _, m := range members {
		renewing.Go(func() {
			for {
				renew(t, m)
				select {
				case <-done:
					return
				case <-time.After(time.Second):
				}
			}
		})
	}
	return func() { close(done); renewing.Wait() }
}

// leader returns the index of the member of the cluster that leads it.
func (c *cluster) leader(t testing.TB, s *Store) (index int) {
	t.Helper()
	lab.Eventually(t, "there is a leader", func() bool {
		for i, endpoint := range c.endpoints {
			r, err := s.client().Status(t.Context(), endpoint)
			if err == nil && r.Leader != 0 && r.Leader == r.Header.MemberId {
				index = i
				return true
			}
		}
		return false
	})
	return index
}

// load is what members do while something happens to the store.
type load struct {
	a, b  *Member
	views []*seen
	n     int // floors, and packets
	more  int // packets
}

// write records floors and spends packets. Each is won.
func (l *load) write(t testing.TB) {
	t.Helper()
	for range 20 {
		l.n++
		lab.Eventually(t, "a floor is recorded", func() bool {
			_, err := l.a.Floor(t.Context(), fmt.Sprint(l.n), []byte("x"), time.Hour)
			return err == nil
		})
		if got := spend(t, l.b, fmt.Sprint("n", l.n), fmt.Sprint("i", l.n), fmt.Sprint("t", l.n)); !got.Won {
			t.Errorf("a packet that is new got %+v", got)
		}
	}
}

// agree waits until all members have seen all floors.
func (l *load) agree(t testing.TB) {
	t.Helper()
	for _, v := range l.views {
		lab.Eventually(t, "the floors arrive", func() bool {
			for i := range l.n {
				if v.get(fmt.Sprint("f/", i+1)) == "" {
					return false
				}
			}
			return true
		})
	}
}

// TestShareTrouble kills and pauses stores, also the leader, and compacts, while members write. What they see in the
// end is what the store has.
func TestShareTrouble(t *testing.T) {
	c, o := newCluster(t, 3), newOffice(t)
	a, b := c.attach(t, o, "a"), c.attach(t, o, "b")
	defer alive(t, a, b)()
	views := []*seen{watchShare(t, a), watchShare(t, b)}
	s := c.open(t, o, "anyone")
	compact := func() {
		r, err := s.client().Get(t.Context(), "x")
		if err == nil {
			s.client().Compact(t.Context(), r.Header.Revision)
		}
	}
	signal := func(i int, is syscall.Signal) { lab.Must(t, c.members[i].Process.Signal(is)) }
	load := &load{a: a, b: b, views: views}
	write, agree := func() { t.Helper(); load.write(t) }, func() { t.Helper(); load.agree(t) }
	for _, trouble := range []struct {
		name   string
		during func() (after func())
	}{
		{"the leader is killed", func() func() { i := c.leader(t, s); c.kill(i); return func() { c.start(t, i) } }},
		{"the leader is paused", func() func() {
			i := c.leader(t, s)
			signal(i, syscall.SIGSTOP)
			return func() { signal(i, syscall.SIGCONT) }
		}},
		{"a follower is paused", func() func() {
			i := (c.leader(t, s) + 1) % 3
			signal(i, syscall.SIGSTOP)
			return func() { signal(i, syscall.SIGCONT) }
		}},
		{"the log is compacted while all are down", func() func() {
			for i := range 3 {
				c.kill(i)
			}
			for i := range 3 {
				c.start(t, i)
			}
			write()
			compact()
			return func() {}
		}},
	} {
		t.Log(trouble.name)
		after := trouble.during()
		write()
		agree()
		after()
		write()
		agree()
	}
}

// TestCompacted: a member whose watch is at a revision that the store has removed reads again.
func TestCompacted(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	a := c.attach(t, o, "a")
	relay := c.relay(t, 0)
	b := lab.Value(Open(Config{Endpoints: []string{"https://" + relay.addr}, TLS: c.as(t, "b"), Fleet: o.seal.Fleet}))(t).
		Member("edge", "b", remembered)
	defer b.store.Close()
	defer alive(t, a)()
	v := watchShare(t, b)
	lab.Eventually(t, "it has read", func() bool { return v.get("s/a") != "" })
	relay.cut()
	for i := range 50 {
		lab.Value(a.Floor(t.Context(), fmt.Sprint(i), []byte("x"), time.Hour))(t)
	}
	lab.Value(a.store.client().Delete(t.Context(), a.floorKey("7")))(t)
	r := lab.Value(a.store.client().Get(t.Context(), "x"))(t)
	lab.Value(a.store.client().Compact(t.Context(), r.Header.Revision))(t)
	relay.mend()
	lab.Eventually(t, "it reads again", func() bool { keys, begins := v.count(); return keys == 50 && begins > 1 })
	if v.get("f/7") != "" {
		t.Error("it has what was removed")
	}
}

// TestReconnects: while its store is away, a member tries to reach it each time it renews its session, however long
// that lasts.
func TestReconnects(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	r := c.relay(t, 0)
	s := lab.Value(Open(Config{Endpoints: []string{"https://" + r.addr}, TLS: c.as(t, "a"), Fleet: o.seal.Fleet}))(t)
	defer s.Close()
	a := s.Member("edge", "a", remembered)
	lab.Eventually(t, "there is a session", func() bool { return renew(t, a) == nil })
	r.cut()
	lab.Eventually(t, "it tries 15 times", func() bool {
		renew(t, a)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.tried >= 15
	})
	r.mend()
	lab.Eventually(t, "it is back", func() bool { return renew(t, a) == nil })
}

// TestRestored: members of a store that was restored from a backup begin anew, and go on.
func TestRestored(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	a := c.attach(t, o, "a")
	data := slices.Index(c.args[0], "--data-dir") + 1
	c.kill(0)
	backup := t.TempDir()
	lab.Must(t, os.CopyFS(backup, os.DirFS(c.args[0][data])))
	c.start(t, 0)
	lab.Eventually(t, "the session lives", func() bool { return renew(t, a) == nil })
	v := watchShare(t, a)
	for i := range 20 {
		lab.Value(a.Floor(t.Context(), fmt.Sprint(i), []byte("x"), time.Hour))(t)
	}
	lab.Eventually(t, "floors arrive", func() bool { return v.get("f/19") != "" })

	c.kill(0)
	c.args[0][data] = backup
	c.start(t, 0)
	for range 40 { // more revisions than before, at once
		lab.Eventually(t, "the restored store takes changes", func() bool {
			_, err := c.open(t, o, "anyone").client().Put(t.Context(), a.prefix+"p/x", "x")
			return err == nil
		})
	}
	lab.Eventually(t, "it is noticed", func() bool { return errors.Is(renew(t, a), ErrLost) })
	lab.Eventually(t, "the member is back", func() bool { return renew(t, a) == nil })
	again := watchShare(t, a)
	lab.Eventually(t, "it reads", func() bool { return again.get("s/a") != "" })
	if keys, _ := again.count(); keys != 1 {
		t.Errorf("%d keys, want the session alone", keys)
	}
}

// TestNoSpace: with a full store nothing is spent and sessions end; when it has space again, all goes on.
func TestNoSpace(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	c.kill(0)
	c.args[0] = append(c.args[0], "--quota-backend-bytes", fmt.Sprint(4<<20))
	c.start(t, 0)
	a := c.attach(t, o, "a")
	ctx, client := t.Context(), a.store.client()
	lab.Eventually(t, "the store is full", func() bool {
		_, err := client.Put(ctx, "fill", strings.Repeat("x", 1<<20))
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
	if _, err := a.Spend(ctx, "n", "i", "t"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("spending: %v", err)
	}
	if err := renew(t, a); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("renewing: %v", err)
	}
	r := lab.Value(client.Delete(ctx, "fill"))(t)
	lab.Value(client.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical()))(t)
	lab.Value(client.Defragment(ctx, c.endpoints[0]))(t)
	lab.Value(client.AlarmDisarm(ctx, new(clientv3.AlarmMember)))(t)
	lab.Eventually(t, "the session is back", func() bool { return renew(t, a) == nil })
	if s := lab.Value(a.Spend(ctx, "n", "i", "t"))(t); !s.Won {
		t.Errorf("got %+v", s)
	}
}

// relay forwards connections to a member of a cluster. Its bytes arrive late.
type relay struct {
	addr string

	mu    sync.Mutex
	conns []net.Conn
	down  bool
	tried int // connections since cut
	mute  atomic.Bool
}

// relayDelay is how much later a relay sends what it got.
const relayDelay = 25 * time.Millisecond

func (c *cluster) relay(t testing.TB, i int) *relay {
	t.Helper()
	l := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	r := &relay{addr: l.Addr().String()}
	to := strings.TrimPrefix(c.endpoints[i], "https://")
	lab.Serve(t, l, func(near net.Conn) {
		defer near.Close()
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer far.Close()
		if !r.add(near, far) {
			return
		}
		var copying sync.WaitGroup
		copying.Go(func() { r.lag(far, near) })
		copying.Go(func() { r.lag(near, far) })
		copying.Wait()
	})
	return r
}

func (r *relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, conns...)
	r.tried++
	return !r.down
}

// cut ends all connections, and lets none through until mend.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down, r.tried = true, 0
	for _, conn := range r.conns {
		conn.Close()
	}
	r.conns = nil
}

func (r *relay) mend() { r.mu.Lock(); defer r.mu.Unlock(); r.down = false }

// stall has it take connections and bytes from now on, and forward nothing.
func (r *relay) stall() { r.mute.Store(true) }

// lag copies what it reads, each part after the delay.
func (r *relay) lag(to, from net.Conn) {
	type part struct {
		due  time.Time
		data []byte
	}
	parts := make(chan part, 10000)
	var writing sync.WaitGroup
	writing.Go(func() {
		defer to.Close()
		for p := range parts {
			time.Sleep(time.Until(p.due))
			if r.mute.Load() {
				continue
			}
			if _, err := to.Write(p.data); err != nil {
				break
			}
		}
		for range parts {
		}
	})
	for {
		data := make([]byte, 64<<10)
		n, err := from.Read(data)
		if n > 0 {
			parts <- part{time.Now().Add(relayDelay), data[:n]}
		}
		if err != nil && !errors.Is(err, io.ErrNoProgress) {
			break
		}
	}
	close(parts)
	writing.Wait()
}

// slow returns a member whose store answers after 50 ms.
func (c *cluster) slow(t testing.TB) *Member {
	t.Helper()
	s := lab.Value(Open(Config{Endpoints: []string{"https://" + c.relay(t, 0).addr}, TLS: c.as(t, "a"),
		Fleet: keys.NewFleetID()}))(t)
	t.Cleanup(func() { s.Close() })
	a := s.Member("edge", "a", remembered)
	lab.Eventually(t, "there is a session", func() bool { return renew(t, a) == nil })
	return a
}

// TestSlowStore has 2,000 packets in flight to a slow store. All are spent, once.
func TestSlowStore(t *testing.T) {
	a := newCluster(t, 1).slow(t)
	defer alive(t, a)()
	began := time.Now()
	var spending sync.WaitGroup
	for i := range 2000 {
		spending.Go(func() {
			if got := spend(t, a, fmt.Sprint("n", i), fmt.Sprint("i", i), fmt.Sprint("t", i)); !got.Won {
				t.Errorf("packet %d got %+v", i, got)
			}
		})
	}
	spending.Wait()
	t.Logf("2000 packets were spent in %v", time.Since(began))
}

// BenchmarkSlowStore spends packets at a slow store, 400 at a time.
func BenchmarkSlowStore(b *testing.B) {
	a := newCluster(b, 1).slow(b)
	defer alive(b, a)()
	var n, late atomic.Int64
	var spending sync.WaitGroup
	b.ResetTimer()
	for range 400 {
		spending.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				if _, err := a.Spend(b.Context(), fmt.Sprint("n", i), fmt.Sprint("i", i), fmt.Sprint("t", i)); err != nil {
					late.Add(1)
				}
			}
		})
	}
	spending.Wait()
	b.ReportMetric(float64(late.Load()), "late")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}
