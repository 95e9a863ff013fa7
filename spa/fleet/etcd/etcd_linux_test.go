package etcd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// office makes bundles.
type office struct {
	seal fleet.Seal
	to   *age.HybridRecipient
}

func newOffice(t testing.TB) office {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	to := lab.Value(age.GenerateHybridIdentity())(t).Recipient()
	return office{fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, to}
}

// bundles returns bundles of one serial for gateways with this many clients.
func (o office) bundles(t testing.TB, serial int64, clients int, gateways ...string) []*fleet.Bundle {
	t.Helper()
	var list []*fleet.Bundle
	for _, gateway := range gateways {
		c := &fleet.Contents{Site: gateway, Gates: keys.Gates{Current: keys.NewGateKey()}}
		for i := range clients {
			c.Clients = append(c.Clients, &keys.Client{Name: fmt.Sprintf("c%06d", i), ID: keys.NewID(),
				Key: keys.NewKey(), Allow: []string{"ssh"}})
		}
		list = append(list, lab.Value(o.seal.Seal(gateway, o.to, serial, time.Now(), c))(t))
	}
	return list
}

func (c *cluster) open(t testing.TB, o office, user string) *Store {
	t.Helper()
	s := lab.Value(Open(Config{Endpoints: c.endpoints, TLS: c.as(t, user), Fleet: o.seal.Fleet}))(t)
	t.Cleanup(func() { s.Close() })
	lab.Eventually(t, "etcd answers", func() bool { _, err := s.Serial(t.Context()); return answered(err) })
	return s
}

// answered reports whether an error, if there is one, came from a working store.
func answered(err error) bool { return err == nil || errors.Is(err, rpctypes.ErrPermissionDenied) }

// follower is what an agent has seen of one gateway.
type follower struct {
	mu      sync.Mutex
	last    []byte
	times   int // that it was given a bundle
	trouble error
	full    bool // it takes nothing
	refused int
}

func follow(t testing.TB, s *Store, gateway string) *follower {
	t.Helper()
	f := new(follower)
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() {
		s.Follow(ctx, gateway,
			f.take,
			func(err error) { f.mu.Lock(); defer f.mu.Unlock(); f.trouble = err })
	})
	t.Cleanup(func() { cancel(); ended.Wait() })
	return f
}

func (f *follower) take(text []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full {
		f.refused++
		return syscall.ENOSPC
	}
	f.last, f.trouble = text, nil
	f.times++
	return nil
}

func (f *follower) has(b *fleet.Bundle) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Equal(f.last, b.Bytes())
}

func (f *follower) troubled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trouble != nil
}

// TestFollow publishes bundles of one part and of several; each follower gets its own, whole.
func TestFollow(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	s := c.open(t, o, "anyone")
	web, db := follow(t, s, "web"), follow(t, s, "db")
	for serial, clients := range []int{0, 1, 6000, 2} {
		bundles := o.bundles(t, int64(serial+1), clients, "web", "db")
		lab.Must(t, s.PublishAll(t.Context(), bundles, int64(serial)))
		lab.Eventually(t, "both gateways get their bundle", func() bool {
			return web.has(bundles[0]) && db.has(bundles[1])
		})
		there := heads(t, s)
		if there["web"] != bundles[0].Head || there["db"] != bundles[1].Head || len(there) != 2 {
			t.Errorf("heads: %v", there)
		}
	}
	r := lab.Value(s.client().Get(t.Context(), s.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly()))(t)
	if r.Count != 1+2+2 {
		t.Errorf("%d keys are left, want serial, two heads and a part of each", r.Count)
	}
	late := follow(t, s, "web")
	lab.Eventually(t, "who comes late gets the last one", func() bool { return late.has(mustBundle(t, web)) })
	lab.Must(t, s.Remove(t.Context(), "db"))
	if left := heads(t, s); len(left) != 1 {
		t.Errorf("after a gateway was removed: %v", left)
	}
}

// TestFollowFlood: a store that reports changes without end has a gateway's agent read once a second, and the last
// change comes through.
func TestFollowFlood(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	s := c.open(t, o, "anyone")
	bundles := o.bundles(t, 1, 1, "web")
	began := time.Now()
	web := follow(t, s, "web")
	lab.Must(t, s.PublishAll(t.Context(), bundles, 0))
	for range 300 {
		lab.Value(s.client().Put(t.Context(), s.headKey("web"), "noise"))(t)
	}
	lab.Must(t, s.putHeads(t.Context(), bundles))
	lab.Eventually(t, "the last change", func() bool { return web.has(bundles[0]) })
	web.mu.Lock()
	defer web.mu.Unlock()
	if most := 2 + int(time.Since(began)/time.Second); web.times > most {
		t.Errorf("it read %d times in %v", web.times, time.Since(began))
	}
}

// heads returns the heads of all bundles.
func heads(t testing.TB, s *Store) map[string]fleet.Head {
	t.Helper()
	list := make(map[string]fleet.Head)
	for gateway, text := range lab.Value(s.Found(t.Context()))(t) {
		list[gateway] = lab.Value(fleet.ParseReadable(text))(t).Head
	}
	return list
}

func mustBundle(t testing.TB, f *follower) *fleet.Bundle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return lab.Value(fleet.Parse(f.last))(t)
}

// TestPublishAtOnce lets administrators publish at once who know the same. One of them wins, with all of its bundles.
func TestPublishAtOnce(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	s := c.open(t, o, "anyone")
	for serial := range int64(5) {
		var all [4][]*fleet.Bundle
		var errs [4]error
		for i := range all {
			all[i] = o.bundles(t, serial+1, i, "web", "db", "mail")
		}
		var publishing sync.WaitGroup
		for i := range all {
			publishing.Go(func() { errs[i] = s.PublishAll(t.Context(), all[i], serial) })
		}
		publishing.Wait()
		won := -1
		for i, err := range errs {
			if err == nil && won < 0 {
				won = i
			} else if !errors.Is(err, ErrNewer) {
				t.Fatalf("publisher %d, beside %d: %v", i, won, err)
			}
		}
		if won < 0 {
			t.Fatal("nobody won")
		}
		for gateway, head := range heads(t, s) {
			if !sameHead(all[won], gateway, head) {
				t.Errorf("serial %d: %s has another's bundle", serial+1, gateway)
			}
		}
		f := follow(t, s, "web")
		lab.Eventually(t, "the winner's bundle is whole", func() bool { return f.has(all[won][0]) })
	}
}

func sameHead(bundles []*fleet.Bundle, gateway string, head fleet.Head) bool {
	for _, b := range bundles {
		if b.Gateway == gateway {
			return b.Head == head
		}
	}
	return false
}

// TestTrouble kills, pauses and restarts members, and compacts. Followers go on where they were.
func TestTrouble(t *testing.T) {
	c, o := newCluster(t, 3), newOffice(t)
	s := c.open(t, o, "anyone")
	f := follow(t, s, "web")
	serial := int64(0)
	publish := func() *fleet.Bundle {
		t.Helper()
		b := o.bundles(t, serial+1, 1, "web")
		lab.Eventually(t, "the office can publish", func() bool {
			err := s.PublishAll(t.Context(), b, serial)
			if errors.Is(err, ErrNewer) { // it was written, and the answer lost
				serial++
				b = o.bundles(t, serial+1, 1, "web")
			}
			return err == nil
		})
		serial++
		return b[0]
	}
	got := func(b *fleet.Bundle) { t.Helper(); lab.Eventually(t, "it arrives", func() bool { return f.has(b) }) }
	got(publish())
	for name, during := range map[string]func() (after func()){
		"one is killed": func() func() { c.kill(0); return func() { c.start(t, 0) } },
		"one is paused": func() func() {
			lab.Must(t, c.members[1].Process.Signal(syscall.SIGSTOP))
			return func() { lab.Must(t, c.members[1].Process.Signal(syscall.SIGCONT)) }
		},
		"compaction": func() func() {
			r := lab.Value(s.client().Get(t.Context(), "x"))(t)
			lab.Value(s.client().Compact(t.Context(), r.Header.Revision))(t)
			return func() {}
		},
	} {
		t.Log(name)
		after := during()
		got(publish())
		after()
		got(publish())
	}
	for i := range c.members {
		c.kill(i)
	}
	lab.Eventually(t, "a store that is gone is reported", f.troubled)
	for i := range c.members {
		c.start(t, i)
	}
	got(publish())
}

// TestTakenAgain: a bundle that could not be taken is offered again, though nothing in the store has changed.
func TestTakenAgain(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	s := c.open(t, o, "anyone")
	f := follow(t, s, "web")
	set := func(full bool) { f.mu.Lock(); defer f.mu.Unlock(); f.full = full }
	set(true)
	b := o.bundles(t, 1, 1, "web")
	lab.Must(t, s.PublishAll(t.Context(), b, 0))
	lab.Eventually(t, "it is refused", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.refused > 0 })
	set(false)
	lab.Eventually(t, "it arrives", func() bool { return f.has(b[0]) })
}

// TestStoreGoesBack: a store that was made again has lower revisions than followers have seen. They get what is
// published then.
func TestStoreGoesBack(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	s := c.open(t, o, "anyone")
	f := follow(t, s, "web")
	for serial := range int64(20) { // revisions that the new store does not reach
		lab.Must(t, s.PublishAll(t.Context(), o.bundles(t, serial+1, 1, "web"), serial))
	}
	last := o.bundles(t, 21, 1, "web")
	lab.Must(t, s.PublishAll(t.Context(), last, 20))
	lab.Eventually(t, "it arrives", func() bool { return f.has(last[0]) })

	c.kill(0)
	c.args[0][slices.Index(c.args[0], "--data-dir")+1] = t.TempDir()
	c.start(t, 0)
	next := o.bundles(t, 22, 1, "web")
	lab.Eventually(t, "the office can publish", func() bool { return s.PublishAll(t.Context(), next, 22) == nil })
	lab.Eventually(t, "it arrives from the new store", func() bool { return f.has(next[0]) })
}

// TestLeastRights gives an agent the role that its page describes: it reads its own gateway's keys and writes its
// report, and nothing else.
func TestLeastRights(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	root := c.open(t, o, "root")
	lab.Must(t, root.PublishAll(t.Context(), o.bundles(t, 1, 1, "web", "db"), 0))
	lab.Must(t, permitAgent(t.Context(), root, "agent-web", "web"))
	lab.Must(t, permitOffice(t.Context(), root, "office"))
	ctx := t.Context()
	lab.Value(root.client().UserAddWithOptions(ctx, "root", "", &clientv3.UserAddOptions{NoPassword: true}))(t)
	lab.Value(root.client().UserGrantRole(ctx, "root", "root"))(t)
	lab.Value(root.client().AuthEnable(ctx))(t)

	agent, manager := c.open(t, o, "agent-web"), c.open(t, o, "office")
	f, other := follow(t, agent, "web"), follow(t, agent, "db")
	second := o.bundles(t, 2, 1, "web", "db")
	lab.Must(t, manager.PublishAll(ctx, second, 1))
	lab.Eventually(t, "the agent gets its own gateway's", func() bool { return f.has(second[0]) })
	lab.Eventually(t, "and no other's", other.troubled)

	lab.Must(t, agent.Report(ctx, "web", []byte("a report")))
	if said := lab.Value(manager.Taken(ctx))(t); len(said) != 1 || string(said["web"]) != "a report" {
		t.Errorf("the office gets the reports %q", said)
	}

	for what, do := range map[string]func(*Store) error{
		"report for another": func(s *Store) error { return s.Report(ctx, "db", []byte("a report")) },
		"list reports":       func(s *Store) error { _, err := s.Taken(ctx); return err },
		"publish":            func(s *Store) error { return s.PublishAll(ctx, o.bundles(t, 3, 1, "web"), 2) },
		"write":              func(s *Store) error { return s.putHeads(ctx, second[:1]) },
		"remove":             func(s *Store) error { return s.Remove(ctx, "web") },
		"list":               func(s *Store) error { _, err := s.Found(ctx); return err },
		"change users":       func(s *Store) error { _, err := s.client().UserAdd(ctx, "x", "x"); return err },
	} {
		if err := do(agent); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("an agent may %s: %v", what, err)
		}
	}
	if err := permitOffice(ctx, manager, "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("the office may change users: %v", err)
	}
	plain, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints, TLS: c.as(t, "stranger")})
	lab.Must(t, err)
	defer plain.Close()
	if _, err := plain.Get(ctx, root.prefix, clientv3.WithPrefix()); err == nil {
		t.Error("a certificate without a user reads")
	}
}
