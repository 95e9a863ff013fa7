package firewall

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestFinishLeavesTheSets: adding many grants twice would take long, and until the second batch is through, sessions
// without a grant stall.
func TestFinishLeavesTheSets(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	s.bare(guard.Plan{})
	n := s.backend.(*nftables.Backend)
	s.must(n.Set([]guard.Lease{{
		Element: guard.Element{Source: netip.MustParseAddr("192.0.2.2"), Proto: service.TCP, Port: 22},
		Until:   time.Now().Add(long)}}))
	s.must(n.Finish(n.Objects, n.Flags(), false))
	if !n.Tracks() {
		t.Error("the full rules are not there")
	}
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestFinishOfWhatIsGone: another tool flushed the rule set between the two batches.
func TestFinishOfWhatIsGone(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	s.bare(guard.Plan{})
	s.flushRuleset()
	n := s.backend.(*nftables.Backend)
	if err := n.Finish(n.Objects, n.Flags(), false); !errors.Is(err, guard.ErrGone) {
		t.Errorf("got %v, want that the sets are gone", err)
	}
	if s.table().Handle != 0 {
		t.Error("there is a guard without ports")
	}
}

// TestLoadUnderFlushes: a flush of the rule set at any moment of a load makes nothing fail.
func TestLoadUnderFlushes(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	stop := lab.Repeat(s.flushUnasked)
	for range 30 {
		if err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) }); err != nil {
			t.Errorf("under flushes: %v", err)
			break
		}
	}
	stop()
}

// flushUnasked flushes the rule set from another goroutine than the test's.
func (s *site) flushUnasked() {
	err := s.gw.Do(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
	if err != nil {
		s.Errorf("flushing: %v", err)
	}
}
