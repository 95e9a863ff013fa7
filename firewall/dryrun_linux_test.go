package firewall

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"sallyport/firewall/internal/keeper"
	"sallyport/firewall/internal/ledger"
	"sallyport/spa/lab"
)

// dryRun starts a dry run in place of the running daemon, and returns what it logs.
func (s *site) dryRun() string {
	s.Helper()
	var said bytes.Buffer
	c := s.config
	c.Backend = BackendDryRun
	s.must(s.gw.Do(func() error {
		fw, err := New(c, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			return err
		}
		return errors.Join(fw.Load(s.Context(), 0, time.Now()), fw.Close())
	}))
	return said.String()
}

// TestDryRunEndsGrants: a dry run could revoke nothing that an earlier run granted, so it ends those grants. The
// guard of that run stays shut, sessions continue, and no later start restores the grants.
func TestDryRunEndsGrants(t *testing.T) {
	overKinds(t, kinds(), func(t *testing.T, k kind) {
		s := k.newSite(t, func(c *Config) {
			withOwner(c)
		})
		if k.programs == "" {
			s.Cleanup(s.endKeepers)
		}
		s.open()
		s.load(0)
		for _, f := range bothFamilies {
			s.grant("alice", f.alice, long)
		}
		session := s.connect("192.0.2.2", "192.0.2.1", "22")
		s.die()
		s.connect("192.0.2.2", "192.0.2.1", "22")
		siege := s.besiege()
		said := s.dryRun()
		siege.lift()
		for _, want := range []string{"client=alice", "source=2001:db8::2", "guard of an earlier run is in place",
			"spa-server teardown"} {
			if !strings.Contains(said, want) {
				t.Errorf("it does not log %q: %s", want, said)
			}
		}
		for _, f := range bothFamilies {
			s.dark(f.alice, f.gateway, "22")
			s.dark(f.stranger, f.gateway, "22")
		}
		s.echoes(session)
		if said := s.dryRun(); strings.Contains(said, "alice") {
			t.Errorf("the second time it logs: %s", said)
		}
		s.open()
		s.load(0)
		s.dark("192.0.2.2", "192.0.2.1", "22")
		s.grant("alice", "192.0.2.2", long)
		s.connect("192.0.2.2", "192.0.2.1", "22")
	})
}

// TestDryRunLeavesTheGuardOwned: the guard that stays is still protected from a flush.
func TestDryRunLeavesTheGuardOwned(t *testing.T) {
	s := ownedGuard(t, nil)
	s.die()
	before := s.listing()
	s.dryRun()
	if got := s.listing(); got != withoutGrants(before) {
		t.Errorf("got %s\nwant as it was, without grants: %s", got, before)
	}
	lab.Eventually(t, "the keeper to hold", func() bool {
		pid, err := keeper.LockHolder(s.keeperLock())
		return err == nil && pid != 0
	})
	siege := s.besiege()
	for range 20 {
		siege.goesOn()
		s.flushRuleset()
	}
	siege.lift()
	s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

// withoutGrants returns a listing without the elements of alice's grant.
func withoutGrants(listing string) string {
	var b strings.Builder
	for line := range strings.Lines(listing) {
		if !strings.Contains(line, "elements = { 192.0.2.2 ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestDryRunLeavesATrial: the kernel still removes a guard on trial.
func TestDryRunLeavesATrial(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		inTime(t, time.Second, func(within time.Duration) bool {
			s := k.newSite(t, nil)
			s.open()
			v := s.try(within)
			s.die()
			s.dryRun()
			early := v.stands("192.0.2.3", "192.0.2.1", "22")
			lab.Eventually(t, "the guard's end", func() bool { return s.isOpen("192.0.2.3", "192.0.2.1", "22") })
			return early
		})
	})
}

// TestDryRunEndsAdmitted: a dry run also ends grants in the administrator's sets, and leaves the administrator's own
// elements.
func TestDryRunEndsAdmitted(t *testing.T) {
	s := admitted(t)
	s.nft("add element inet filter spa4 { 192.0.2.4 . tcp . 22 }")
	for _, f := range bothFamilies {
		s.grant("alice", f.alice, long)
		s.connect(f.alice, f.gateway, "22")
	}
	s.die()
	s.config.Mode, s.config.Admit = Guard, AdmitSets{} // the sets are no longer configured
	if said := s.dryRun(); !strings.Contains(said, "client=alice") || strings.Contains(said, "stands") {
		t.Errorf("it logs: %s", said)
	}
	for _, f := range bothFamilies {
		s.dark(f.alice, f.gateway, "22")
	}
	s.connect("192.0.2.4", "192.0.2.1", "22")
}

// TestDryRunOfNothing: a dry run changes nothing if nothing of ours is there, and leaves a foreign table with our
// name alone.
func TestDryRunOfNothing(t *testing.T) {
	s := newSite(t, nil)
	if said := s.dryRun(); strings.Contains(said, "WARN") {
		t.Errorf("it logs: %s", said)
	}
	s.connect("192.0.2.3", "192.0.2.1", "22")
	s.nft("table inet spa { set grants4 { type ipv4_addr; elements = { 192.0.2.2 }; }; }")
	if said := s.dryRun(); strings.Contains(said, "WARN") || !strings.Contains(s.listing(), "192.0.2.2") {
		t.Errorf("it logs: %s", said)
	}
}

// TestDryRunFailsShut: a dry run does not start if it cannot end earlier grants.
func TestDryRunFailsShut(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.die()
	l := s.config
	l.Backend = BackendDryRun
	s.must(s.gw.Do(func() error {
		fw, err := New(l, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer fw.Close()
		ledger, err := ledger.Open(l.State, "", l.slots)
		if err != nil {
			return err
		}
		defer ledger.Close()
		if _, err := ledger.File.WriteAt([]byte("something else"), 0); err != nil {
			return err
		}
		if err := fw.Load(t.Context(), 0, time.Now()); err == nil || !strings.Contains(err.Error(), "spa-server teardown") {
			t.Errorf("got %v, want the command that ends them", err)
		}
		return nil
	}))
}
