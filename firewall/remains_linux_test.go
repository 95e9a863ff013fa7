package firewall

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// TestFailedStartOfIptablesLeavesNothing: a guard that could not be loaded completely is removed, because no daemon
// could open it.
func TestFailedStartOfIptablesLeavesNothing(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		for _, fails := range []string{"iptables-restore", "ip6tables-restore"} {
			t.Run(name+" "+fails, func(t *testing.T) {
				s := kindNamed(t, name).newSite(t, nil)
				path := filepath.Join(s.config.programs, fails)
				s.must(os.Rename(path, path+"-real"))
				fakeProgram(t, s.config.programs, fails, `in=$(/bin/cat)
case "$in" in *conntrack*) echo "there is no such match" >&2; exit 2;; esac
printf '%s\n' "$in" | exec `+path+`-real "$@"`)
				s.open()
				if err := s.gw.Do(func() error { return s.Load(s.Context(), 0, time.Now()) }); err == nil {
					t.Fatal("the guard was loaded")
				}
				for _, f := range bothFamilies {
					s.connect(f.stranger, f.gateway, "22") // clients are not shut out
				}
			})
		}
	}
}

// TestFailedStartLeavesNothing: the same for nftables, when the kernel refuses rules that come after a simpler guard.
func TestFailedStartLeavesNothing(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	n := s.backend.(*nftables.Backend)
	n.Objects.Confirm = n.Objects.Guard // a chain that jumps to itself
	if err := s.gw.Do(func() error { return s.Load(s.Context(), long, time.Now()) }); err == nil {
		t.Fatal("the guard was loaded")
	}
	if !s.isGone(nftables.TableName) {
		t.Error("parts of the guard are left")
	}
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

// TestSetsNamedBeforeHoldNothing: a grant in a set that is no longer configured could not be revoked.
func TestSetsNamedBeforeHoldNothing(t *testing.T) {
	s := admitted(t)
	s.grant("alice", "192.0.2.2", long)
	s.nft("add set inet filter other4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }\n" +
		"add rule inet filter input ip saddr . meta l4proto . th dport @other4 accept\n" +
		"add element inet filter spa4 { 192.0.2.3 . tcp . 22 }\n")
	s.config.Admit.Set4 = "other4"
	s.open()
	s.load(0)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.revoke(Match{})
	s.dark("192.0.2.2", "192.0.2.1", "22")
	s.connect("192.0.2.3", "192.0.2.1", "22") // the administrator's own
}

// TestKeeperThatIsSlow: a keeper that has not taken its lock yet is waited for.
func TestKeeperThatIsSlow(t *testing.T) {
	s := newOwned(t, nil)
	s.open()
	pid := s.backend.(*nftables.Backend).Keeper.PID
	s.must(unix.Kill(pid, unix.SIGSTOP))
	s.load(0)
	s.die()
	goes := time.AfterFunc(200*time.Millisecond, func() { unix.Kill(pid, unix.SIGCONT) })
	defer goes.Stop()
	s.open()
	s.load(0)
}

// TestRelayOfAKilledDaemon: its keeper holds the standby table too, and the next daemon ends both.
func TestRelayOfAKilledDaemon(t *testing.T) {
	s := ownedGuard(t, nil)
	n := s.backend.(*nftables.Backend)
	s.must(n.Make(nftables.NewObjectsOf(nftables.RelayName, n.Spec.Size), guard.Plan{}, nftables.TableOwner, true))
	s.die()
	siege := s.besiege()
	s.open()
	s.load(0)
	siege.lift()
	s.grant("bob", "192.0.2.3", long)
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

// TestKeeperEndsWhileManyAsk is for the race detector.
func TestKeeperEndsWhileManyAsk(t *testing.T) {
	s := ownedGuard(t, nil)
	s.must(unix.Kill(s.backend.(*nftables.Backend).Keeper.PID, unix.SIGKILL))
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for s.Persists() {
		}
	}()
	for s.Persists() {
		_ = s.Describe()
	}
	<-asked
}

// TestWatchHearsOfEachEnd: Watch notices at any moment that an administrator's element stands in for a grant.
func TestWatchHearsOfEachEnd(t *testing.T) {
	s := admitted(t)
	a := s.backend.(*nftables.Admitting)
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
		woken := make(chan error, 1)
		go func() {
			err := os.ErrDeadlineExceeded
			for errors.Is(err, os.ErrDeadlineExceeded) {
				err = a.Watch(ctx, time.Time{})
			}
			woken <- err
		}()
		runtime.Gosched()
		a.Wait(time.Now())
		err := <-woken
		cancel()
		if err != nil {
			t.Fatalf("got %v, want that Watch looks at once", err)
		}
	}
}

// TestRelayShutsMeanwhile: the standby table guards while the table is exchanged, however long that takes, and no
// longer.
func TestRelayShutsMeanwhile(t *testing.T) {
	s := ownedGuard(t, nil)
	n := s.backend.(*nftables.Backend)
	p := guard.Plan{Leases: s.held.Leases()}
	s.must(n.BehindRelay(p, func() error {
		if err := n.DeleteTable(nftables.TableName); err != nil {
			return err
		}
		s.dark("192.0.2.3", "192.0.2.1", "22")
		s.connect("192.0.2.2", "192.0.2.1", "22")
		return n.Make(n.Objects, p, n.Flags(), true)
	}))
	s.must(n.EndRelay())
	s.grant("bob", "192.0.2.3", long)
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

// TestSetsThatAreHeld: older kernels hold a set for a while after the rule that uses it is gone. Here another tool's
// rule holds it.
func TestSetsThatAreHeld(t *testing.T) {
	iptablesOnly(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.must(s.Firewall.Close())
		s.Firewall = nil
		rule := []string{"OUTPUT", "-m", "set", "--match-set", iptables.SetName(iptables.SetGrants, false), "src", "-j",
			"RETURN"}
		s.program("iptables", append([]string{"-w", lockWait, "-A"}, rule...)...)
		torn := make(chan error, 1)
		go func() { torn <- s.gw.Do(func() error { return Teardown(s.config.State) }) }()
		lab.Eventually(t, "the end of the other sets", func() bool {
			return s.hasSet(iptables.SetName(iptables.SetGrants, false)) &&
				!s.hasSet(iptables.SetName(iptables.SetPeers, true))
		})
		s.program("iptables", append([]string{"-w", lockWait, "-D"}, rule...)...)
		s.must(<-torn)
		s.wantNoSets()
	})
}

// TestSetsThatAreLeft: a teardown removes our sets even if it finds no chain of ours.
func TestSetsThatAreLeft(t *testing.T) {
	iptablesOnly(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.must(removeChains(s.backend.(*iptables.Backend).Helper))
		s.must(s.Firewall.Close())
		s.Firewall = nil
		if !s.hasSet(iptables.SetName(iptables.SetGrants, true)) {
			t.Fatal("there are no sets to be left")
		}
		s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
		s.wantNoSets()
	})
}

// removeChains removes the chains and leaves the sets.
func removeChains(h *iptables.Helper) error {
	_, err := h.Ask(iptables.Request{Op: iptables.OpRemove, Wait: true})
	return err
}

func (s *site) wantNoSets() {
	s.Helper()
	for _, name := range iptables.OurSets() {
		if s.hasSet(name) {
			s.Errorf("the set %s is left", name)
		}
	}
}

func (s *site) hasSet(name string) bool {
	s.Helper()
	var there bool
	s.must(s.gw.Do(func() error {
		sets, err := ipset.Open()
		if err != nil {
			return err
		}
		defer sets.Close()
		_, err = sets.List(name)
		there = err == nil
		if errors.Is(err, guard.ErrGone) {
			err = nil
		}
		return err
	}))
	return there
}
