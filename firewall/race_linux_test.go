package firewall

import (
	"errors"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// crossed is a backend to which something happens in the middle of a call.
type crossed struct {
	guard.Backend
	beforeLoad, afterLoad func()
	beforePermanent       func() error
}

func (c *crossed) Load(spec guard.Spec, p guard.Plan) error {
	if do := c.beforeLoad; do != nil {
		c.beforeLoad = nil
		do()
	}
	err := c.Backend.Load(spec, p)
	if do := c.afterLoad; do != nil {
		c.afterLoad = nil
		do()
	}
	return err
}

func (c *crossed) Permanent() error {
	if do := c.beforePermanent; do != nil {
		c.beforePermanent = nil
		if err := do(); err != nil {
			return err
		}
	}
	return c.Backend.Permanent()
}

// tearDownMeanwhile begins a teardown by another process, which may have to wait.
func (s *site) tearDownMeanwhile(done chan<- error) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- s.gw.Do(func() error { return Teardown(s.config.State) })
	}()
	wait := time.NewTimer(silence)
	defer wait.Stop()
	select {
	case <-ended:
	case <-wait.C:
	}
}

// TestTeardownDuringLoad: what was torn down stays so, whatever another process was doing.
func TestTeardownDuringLoad(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	done := make(chan error, 1)
	s.backend = &crossed{Backend: s.backend, afterLoad: func() { s.tearDownMeanwhile(done) }}
	s.load(0)
	s.must(<-done)
	s.ends(s.watch(), ErrTornDown)
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

func TestTeardownDuringGrant(t *testing.T) {
	s := guarded(t, nil)
	done := make(chan error, 1)
	s.backend = &crossed{Backend: s.backend, beforeLoad: func() { s.tearDownMeanwhile(done) }}
	s.flushRuleset()
	// It finds that the guard is gone and puts it back; whether in time does not matter here.
	s.Grant(t.Context(), []Grant{sshGrant("alice", "192.0.2.2", long)}, time.Now())
	s.must(<-done)
	s.ends(s.watch(), ErrTornDown)
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

func TestTeardownDuringPutBack(t *testing.T) {
	s := guarded(t, nil)
	done := make(chan error, 1)
	s.backend = &crossed{Backend: s.backend, beforeLoad: func() { s.tearDownMeanwhile(done) }}
	s.flushRuleset()
	s.ends(s.watch(), ErrTornDown)
	s.must(<-done)
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

func TestTeardownDuringConfirmation(t *testing.T) {
	s := confirming(t, long)
	done := make(chan error, 1)
	s.backend = &crossed{Backend: s.backend, beforePermanent: func() error {
		s.tearDownMeanwhile(done)
		return nil
	}}
	s.grant("alice", "192.0.2.2", long)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.ends(s.watch(), ErrTornDown)
	s.must(<-done)
}

// TestForceFirstLoadDuringLoad: a phase that was set during a load is not lost.
func TestForceFirstLoadDuringLoad(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	done := make(chan error, 1)
	s.backend = &crossed{Backend: s.backend, afterLoad: func() {
		ended := make(chan struct{})
		go func() { defer close(ended); done <- ForceFirstLoad(s.config.State) }()
		wait := time.NewTimer(silence)
		defer wait.Stop()
		select {
		case <-ended:
		case <-wait.C:
		}
	}}
	s.load(0)
	s.must(<-done)
	if m, err := s.ledger.Phase(); m != ledger.LoadFirst || err != nil {
		t.Errorf("the next load is %d, %v, want a first load", m, err)
	}
}

// TestFlushDuringConfirmation: the guard that is put back is permanent.
func TestFlushDuringConfirmation(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(*site) error
	}{
		{"flush", func(s *site) error { s.flushRuleset(); return nil }},
		{"any error", func(*site) error { return errors.New("not now") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			inTime(t, time.Second, func(within time.Duration) bool {
				s := confirming(t, within)
				s.backend = &crossed{Backend: s.backend, beforePermanent: func() error { return test.do(s.site) }}
				n := s.counts("is confirmed")
				ended := s.watch()
				if !s.gives(sshGrant("alice", "192.0.2.2", long)) {
					return false
				}
				s.connect("192.0.2.2", "192.0.2.1", "22")
				if !s.confirms(ended, n) {
					return false
				}
				lab.Eventually(t, "the guard", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
				s.passes(ended)
				s.dark("192.0.2.3", "192.0.2.1", "22")
				if m, err := s.ledger.Phase(); m != ledger.LoadAgain || err != nil {
					t.Errorf("the next load is %d, %v, want one that is not the first", m, err)
				}
				return true
			})
		})
	}
}

// TestMarkerDeleted: the chain that identifies the table may be deleted like anything else in it.
func TestMarkerDeleted(t *testing.T) {
	ours := nftables.NewObjects(0)
	for _, test := range []struct {
		name string
		do   func(*nft.Conn)
	}{
		{"marker alone", func(c *nft.Conn) { c.DelChain(ours.Marker) }},
		{"marker and guard", func(c *nft.Conn) {
			c.DelChain(ours.Marker)
			c.FlushChain(ours.Guard)
			c.DelChain(ours.Guard)
		}},
		{"everything", func(c *nft.Conn) {
			chains, err := c.ListChainsOfTableFamily(nft.TableFamilyINet)
			sets, err2 := c.GetSets(ours.Marker.Table)
			lab.Must(t, errors.Join(err, err2))
			for _, chain := range chains {
				c.FlushChain(chain)
			}
			for _, chain := range chains {
				c.DelChain(chain)
			}
			for _, set := range sets {
				c.DelSet(set)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := guarded(t, nil)
			n := s.counts("put back")
			s.watch()
			s.grant("alice", "192.0.2.2", long)
			s.another(test.do)
			lab.Eventually(t, "the put-back", func() bool { return n.Load() > 0 })
			s.dark("192.0.2.3", "192.0.2.1", "22")
			s.connect("192.0.2.2", "192.0.2.1", "22")
			if test.name == "everything" {
				return
			}
			s.must(s.Firewall.Close())
			s.Firewall = nil
			s.another(test.do) // while no daemon runs
			s.open()
			s.load(0)
			s.dark("192.0.2.3", "192.0.2.1", "22")
			s.another(func(c *nft.Conn) { c.DelChain(ours.Marker) })
			s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
			s.connect("192.0.2.3", "192.0.2.1", "22")
		})
	}
}

// TestForeignSets: the names of our sets alone do not make a table ours.
func TestForeignSets(t *testing.T) {
	s := newSite(t, nil)
	ours := nftables.NewObjects(0)
	s.another(func(c *nft.Conn) {
		c.AddTable(ours.Table)
		for _, set := range []*nft.Set{ours.Guarded, ours.Grants4} {
			c.AddSet(set, nil)
		}
		c.AddSet(&nft.Set{Table: ours.Table, Name: "grants6", KeyType: nft.TypeIP6Addr}, nil)
	})
	s.open()
	err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) })
	if !errors.Is(err, ErrForeign) {
		t.Errorf("got %v, want ErrForeign", err)
	}
}
