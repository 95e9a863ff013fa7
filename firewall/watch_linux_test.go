package firewall

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func TestPutBack(t *testing.T) {
	ours := nftables.NewObjects(0)
	for _, test := range []struct {
		name string
		do   func(*nft.Conn)
	}{
		{"rule set flushed", (*nft.Conn).FlushRuleset},
		{"table deleted", func(c *nft.Conn) { c.DelTable(ours.Table) }},
		{"rules flushed", func(c *nft.Conn) { c.FlushChain(ours.Guard) }},
		{"chain deleted", func(c *nft.Conn) { c.FlushChain(ours.Guard); c.DelChain(ours.Guard) }},
		{"rule put first", func(c *nft.Conn) {
			c.InsertRule(&nft.Rule{Table: ours.Table, Chain: ours.Guard, Exprs: nftables.Accept().Exprs})
		}},
		{"set flushed", func(c *nft.Conn) { c.FlushSet(ours.Guarded) }},
		{"element deleted", func(c *nft.Conn) {
			c.SetDeleteElements(ours.Guarded, nftables.PortElements([]service.Ports{ports("tcp/22")}, 0))
		}},
		{"grants flushed", func(c *nft.Conn) { c.FlushSet(ours.Grants4); c.FlushSet(ours.Grants6) }},
		{"stranger granted", func(c *nft.Conn) {
			c.SetAddElements(ours.Grants4, []nft.SetElement{{Key: nftables.PortKey([]byte{192, 0, 2, 3}, service.TCP, 22)}})
		}},
		{"replaced by another tool's copy", func(c *nft.Conn) {
			c.DelTable(ours.Table)
			c.AddTable(ours.Table)
			c.AddChain(ours.Marker)
			// The library counts ids without a lock.
			c.AddSet(&nft.Set{Table: ours.Table, Name: "grants4", KeyType: nft.TypeIPAddr, ID: 1}, nil)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := guarded(t, nil)
			s.watch()
			s.grant("alice", "192.0.2.2", long)
			s.grant("alice", "2001:db8::2", long)
			session := s.connect("192.0.2.2", "192.0.2.1", "22")
			s.another(test.do)
			for _, f := range bothFamilies {
				lab.Eventually(t, "darkness", func() bool { return !s.isOpen(f.stranger, f.gateway, "22") })
				lab.Eventually(t, "the grant", func() bool { return s.isOpen(f.alice, f.gateway, "22") })
				s.dark(f.stranger, f.gateway, "22")
			}
			s.echoes(session)
		})
	}
}

// TestGrantWhileTheGuardIsGone: a knock that arrives before Watch has put the guard back.
func TestGrantWhileTheGuardIsGone(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.grant("bob", "192.0.2.4", long)
		s.flushRuleset()
		s.grant("alice", "192.0.2.2", long)
		if k.programs != "" {
			s.watch() // sets are not in the tables that were flushed: the grant did not notice
		}
		lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
		s.connect("192.0.2.2", "192.0.2.1", "22")
		s.connect("192.0.2.4", "192.0.2.1", "22")
		s.dark("192.0.2.3", "192.0.2.1", "22")
	})
}

func TestRevokeWhileTheGuardIsGone(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.flushRuleset()
	if gs := s.revoke(Match{Client: "alice"}); len(gs) != 1 {
		t.Errorf("revoked %v, want alice's", gs)
	}
	s.load(0)
	s.dark("192.0.2.2", "192.0.2.1", "22")
}

// counting counts the log lines that contain a text.
type counting struct {
	slog.Handler
	word string
	n    *atomic.Int32
}

func (c counting) Enabled(context.Context, slog.Level) bool { return true }
func (c counting) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, c.word) {
		c.n.Add(1)
	}
	return nil
}

func (s *site) counts(word string) *atomic.Int32 {
	n := new(atomic.Int32)
	s.log = slog.New(counting{slog.DiscardHandler, word, n})
	return n
}

// TestOwnChangesWakeNobody: our own changes cause no loop of put-backs, and no work for each grant.
func TestOwnChangesWakeNobody(t *testing.T) {
	s := guarded(t, nil)
	n := s.counts("put back")
	s.watch()
	timed := 0
	s.Firewall.Time(func(time.Duration) { timed++ })
	for range 50 {
		s.grant("alice", "192.0.2.2", long)
		s.revoke(Match{})
	}
	if timed != 100 {
		t.Errorf("%d changes were timed, want 100", timed)
	}
	if got := s.Firewall.Condition().PutBack; got != 0 {
		t.Errorf("%d put-backs are counted, and nobody has changed anything", got)
	}
	s.load(0)
	s.another(func(c *nft.Conn) { chainOf(c, nft.ChainTypeFilter, nft.ChainHookInput, 0) }) // not our table
	s.flushRuleset()
	lab.Eventually(t, "the put-back", func() bool { return n.Load() > 0 })
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
	if got := n.Load(); got != 1 {
		t.Errorf("the guard was put back %d times, want once", got)
	}
	if got := s.Firewall.Condition().PutBack; got != 1 {
		t.Errorf("%d put-backs are counted, want 1", got)
	}
}

// TestLoadSettlesEarlierChanges: a change before a load needs no put-back after it.
func TestLoadSettlesEarlierChanges(t *testing.T) {
	s := guarded(t, nil)
	n := s.counts("put back")
	s.flushRuleset()
	s.load(0)
	s.watch()
	s.flushRuleset()
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
	lab.Eventually(t, "the put-back", func() bool { return n.Load() > 0 })
	s.load(0) // after pending changes
	if got := n.Load(); got != 1 {
		t.Errorf("the guard was put back %d times, want once", got)
	}
}

// TestLostEvents: when events arrive faster than they are read, the guard is put back anyway.
func TestLostEvents(t *testing.T) {
	s := guarded(t, nil)
	s.must(s.backend.(*nftables.Backend).Events.SetReadBuffer(1))
	for range 100 {
		s.another(func(c *nft.Conn) { chainOf(c, nft.ChainTypeFilter, nft.ChainHookInput, 0, nftables.Accept().Exprs...) })
	}
	s.flushRuleset()
	s.watch()
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
}

func TestForeignTableWhileWatching(t *testing.T) {
	s := guarded(t, nil)
	n := s.counts("could not be put back")
	s.watch()
	s.foreign()
	lab.Eventually(t, "the complaint", func() bool { return n.Load() == 1 })
	if !s.precious() {
		t.Error("the foreign table was touched")
	}
	s.flushRuleset()
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
}

// stubborn is a backend that does not load.
type stubborn struct {
	guard.Backend
	no atomic.Bool
}

func (b *stubborn) Load(spec guard.Spec, p guard.Plan) error {
	if b.no.Load() {
		return errors.New("not now")
	}
	return b.Backend.Load(spec, p)
}

// TestPutBackIsTriedAgain: a failed put-back is retried without any other event.
func TestPutBackIsTriedAgain(t *testing.T) {
	s := guarded(t, nil)
	b := &stubborn{Backend: s.backend}
	s.backend = b
	b.no.Store(true)
	n := s.counts("could not be put back")
	s.watch()
	s.flushRuleset()
	lab.Eventually(t, "the complaint", func() bool { return n.Load() == 1 })
	b.no.Store(false)
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
	if got := n.Load(); got != 1 {
		t.Errorf("it was logged %d times, want once", got)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	s := guarded(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Watch(ctx) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestReloadIsNeverOpen(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.grant("alice", "192.0.2.2", long)
		var through, tries atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		done := make(chan struct{})
		go func() {
			defer close(done)
			attempts := make(chan struct{}, 100)
			for ctx.Err() == nil {
				<-tick.C
				select {
				case attempts <- struct{}{}:
				default:
					continue
				}
				tries.Add(1)
				go func() {
					if s.isOpen("192.0.2.3", "192.0.2.1", "22") {
						through.Add(1)
					}
					<-attempts
				}()
			}
			for range cap(attempts) {
				attempts <- struct{}{}
			}
		}()
		rounds := 300
		if k.programs != "" {
			rounds = 30 // each runs programs
		}
		for range rounds {
			s.load(0)
			c, err := s.dial("192.0.2.2", "192.0.2.1", "22")
			if err != nil {
				t.Fatalf("alice is shut out during a reload: %v", err)
			}
			c.Close()
		}
		cancel()
		<-done
		if n := through.Load(); n != 0 {
			t.Errorf("%d of %d attempts came through while the guard was reloaded", n, tries.Load())
		}
	})
}

// TestReloadKeepsTheChains: a packet between the old chain and the new one, while one replaces the other, could pass
// both, too seldom for a test to see it.
func TestReloadKeepsTheChains(t *testing.T) {
	s := guarded(t, nil)
	var heard *netlink.Conn
	s.must(s.gw.Do(func() (err error) { heard, err = nl.Changes(0); return err }))
	defer heard.Close()
	s.load(0)
	for end := false; !end; {
		s.must(heard.SetReadDeadline(time.Now().Add(lab.Patience)))
		messages := lab.Value(heard.Receive())(s)
		for _, m := range messages {
			switch nl.Kind(m) {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN:
				t.Errorf("a reload deletes by message %d", nl.Kind(m))
			case unix.NFT_MSG_NEWGEN:
				end = true
			}
		}
	}
}

func TestTeardown(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, daemon := range []string{"alive", "dead"} {
			t.Run("daemon "+daemon, func(t *testing.T) {
				s := k.guarded(t, nil)
				var ended <-chan error
				if daemon == "alive" {
					ended = s.watch()
				} else {
					s.must(s.Firewall.Close())
					s.Firewall = nil
				}
				s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
				if daemon == "alive" {
					s.ends(ended, ErrTornDown)
					if err := s.Grant(t.Context(), []Grant{sshGrant("alice", "192.0.2.2", long)}, time.Now()); err == nil {
						t.Error("a grant was given without a guard")
					}
				}
				session := s.connect("192.0.2.3", "192.0.2.1", "22")
				s.open()
				s.load(0)
				s.echoes(session) // the next load is a first load
				s.dark("192.0.2.3", "192.0.2.1", "22")
				s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
				s.must(s.gw.Do(func() error { return Teardown(s.config.State) })) // again: no error
			})
		}
	})
}

func TestUnconfirmedGuardLapses(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		inTime(t, time.Second, func(within time.Duration) bool {
			s := k.confirming(t, within)
			ended := s.watch()
			early := s.stands("192.0.2.3", "192.0.2.1", "22") &&
				s.gives(sshGrant("alice", "192.0.2.2", long)) // a knock alone confirms nothing
			s.ends(ended, ErrUnconfirmed)
			s.refusal(s.client, "192.0.2.2:0", "192.0.2.1:62201") // nothing of the table is left
			session := s.connect("192.0.2.3", "192.0.2.1", "22")
			s.open()
			s.load(0)
			s.echoes(session) // the next load is a first load
			return early
		})
	})
}

func TestKilledUnconfirmedGuardLapses(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		inTime(t, time.Second, func(within time.Duration) bool {
			s := k.confirming(t, within)
			early := s.stands(f.stranger, f.gateway, "22")
			s.die()
			lab.Eventually(t, "the open port", func() bool { return s.isOpen(f.stranger, f.gateway, "22") })
			session := s.connect(f.stranger, f.gateway, "22")
			s.open()
			s.load(0)
			s.echoes(session)
			return early
		})
	})
}

// TestLaterUnconfirmedGuardLapses: even if an earlier guard was confirmed, the load after an unconfirmed one is a
// first load.
func TestLaterUnconfirmedGuardLapses(t *testing.T) {
	s := guarded(t, nil)
	s.load(500 * time.Millisecond)
	s.must(s.Firewall.Close())
	s.Firewall = nil
	lab.Eventually(t, "the open port", func() bool { return s.isOpen("192.0.2.3", "192.0.2.1", "22") })
	session := s.connect("192.0.2.3", "192.0.2.1", "22")
	s.open()
	s.load(0)
	s.echoes(session)
}

// TestPutBackStillLapses: a guard that was put back is removed when the first would have been, without help.
func TestPutBackStillLapses(t *testing.T) {
	inTime(t, time.Second, func(within time.Duration) bool {
		s := confirming(t, within)
		s.grant("alice", "192.0.2.2", long)
		s.flushRuleset()
		err := s.putBack(time.Now())
		if errors.Is(err, ErrUnconfirmed) && !time.Now().Before(s.until) {
			return false
		}
		s.must(err)
		early := s.stands("192.0.2.3", "192.0.2.1", "22")
		s.die()
		lab.Eventually(t, "the open port", func() bool { return s.isOpen("192.0.2.3", "192.0.2.1", "22") })
		return early
	})
}

func TestConfirmedGuardStays(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		inTime(t, time.Second, func(within time.Duration) bool { return k.confirmedGuardStays(t, f, within) })
	})
}

func (k kind) confirmedGuardStays(t *testing.T, f sides, within time.Duration) (early bool) {
	s := k.confirming(t, within)
	n := s.counts("is confirmed")
	ended := s.watch()
	if !s.gives(sshGrant("alice", f.alice, long)) {
		return false
	}
	s.connect(f.alice, f.gateway, "22")
	if !s.confirms(ended, n) {
		return false
	}
	s.passes(ended)
	s.dark(f.stranger, f.gateway, "22")
	s.flushRuleset() // the restored guard is permanent too
	session := s.connectSometime(f)
	s.load(0)
	s.dead(session) // not a first load
	return true
}

// connectSometime returns a stranger's session that was made in a gap.
func (s *site) connectSometime(f sides) net.Conn {
	s.Helper()
	for range 1000 {
		if c, err := s.attempt(f.stranger, f.gateway, "22", 5*time.Millisecond); err == nil {
			s.Cleanup(func() { c.Close() })
			return c
		}
		s.flushRuleset()
	}
	s.Fatal("no connection in any gap")
	return nil
}

// TestFlushDoesNotConfirm: a guard that was put back must still be confirmed.
func TestFlushDoesNotConfirm(t *testing.T) {
	inTime(t, time.Second, func(within time.Duration) bool {
		s := confirming(t, within)
		ended := s.watch()
		s.flushRuleset()
		back := false
		lab.Eventually(t, "the guard, or its end", func() bool {
			back = !s.isOpen("192.0.2.3", "192.0.2.1", "22")
			return back || s.Condition().Missing
		})
		s.ends(ended, ErrUnconfirmed)
		return back
	})
}

// TestOldSessionDoesNotConfirm: an existing session that continues proves nothing, even if its source has a grant.
func TestOldSessionDoesNotConfirm(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		inTime(t, time.Second, func(within time.Duration) bool {
			s := k.guarded(t, nil)
			s.flushRuleset()
			session := s.connect("192.0.2.2", "192.0.2.1", "22")
			v := s.try(within) // not a first load, which would carry the session
			ended := s.watch()
			if !v.gives(sshGrant("alice", "192.0.2.2", long)) {
				return false
			}
			s.echoes(session)
			early := time.Now().Before(v.until)
			s.ends(ended, ErrUnconfirmed)
			return early
		})
	})
}

// TestConfirmationSurvivesAChange: a connection through a grant is not forgotten when the guard is put back before
// Watch has checked.
func TestConfirmationSurvivesAChange(t *testing.T) {
	s := confirming(t, long)
	n := s.counts("is confirmed")
	s.grant("alice", "192.0.2.2", long)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.another(func(c *nft.Conn) {
		o := nftables.NewObjects(0)
		c.InsertRule(&nft.Rule{Table: o.Table, Chain: o.Guard, Exprs: nftables.Accept().Exprs})
	})
	s.watch()
	lab.Eventually(t, "the confirmation", func() bool { return n.Load() == 1 })
	lab.Eventually(t, "the guard", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
}
