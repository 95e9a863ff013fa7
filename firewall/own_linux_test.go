package firewall

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/keeper"
	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// withOwner gives the table an owner, as on kernels that support it.
func withOwner(c *Config) {
	c.plain = false
	c.Guarded = append(c.Guarded, ports("udp/5000"))
}

// newOwned makes a site whose guard will have an owner, and which leaves no keeper behind.
func newOwned(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := newSite(t, func(c *Config) {
		withOwner(c)
		if change != nil {
			change(c)
		}
	})
	s.Cleanup(s.endKeepers)
	s.must(s.gw.Do(func() error {
		if !CanPersist() {
			lab.KernelLacks(t, "tables that have an owner (Linux 6.9)")
		}
		return nil
	}))
	return s
}

// ownedGuard makes an owned site with the guard loaded, and a grant for alice.
func ownedGuard(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := newOwned(t, change)
	s.open()
	s.load(0)
	s.grant("alice", "192.0.2.2", long)
	return s
}

func (s *site) endKeepers() {
	lock, err := os.OpenFile(filepath.Join(s.config.State, keeper.FileName), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	s.must(err)
	s.must(errors.Join(keeper.EndHolder(lock), lock.Close()))
}

// orphan ends the keeper of a table whose daemon is gone.
func (s *site) orphan() {
	s.Helper()
	lab.Eventually(s, "the orphan", func() bool {
		s.endKeepers() // each time: a keeper takes the lock a moment after the order to hold
		return s.table().Flags&nftables.TableOwner == 0
	})
}

// die ends the daemon as kill -9 does: the kernel closes its files.
func (s *site) die() {
	s.Helper()
	s.must(s.Firewall.Close())
	s.Firewall = nil
}

// table returns the kernel's state of our table.
func (s *site) table() (t nftables.TableState) {
	s.Helper()
	s.must(s.gw.Do(func() error {
		conn, socket, err := nftables.Dial()
		if err != nil {
			return err
		}
		defer conn.CloseLasting()
		n := &nftables.Backend{Objects: nftables.NewObjects(0), Conn: conn, Socket: socket}
		t, err = n.Table()
		return err
	}))
	return t
}

// refused checks that the kernel refuses a change by another tool.
func (s *site) refused(do func(*nft.Conn)) {
	s.Helper()
	err := s.gw.Do(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		do(c)
		return c.Flush()
	})
	if !errors.Is(err, unix.EPERM) {
		s.Errorf("got %v, want EPERM", err)
	}
}

// TestFlushUnderSiege: another tool flushes the rule set while the daemon runs and after it was killed, and no
// stranger comes in for an instant.
func TestFlushUnderSiege(t *testing.T) {
	for _, daemon := range []string{"alive", "dead"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			s := ownedGuard(t, nil)
			if !s.Persists() {
				t.Error("the guard reports that a flush would remove it")
			}
			if daemon == "alive" {
				s.watch()
			} else {
				s.die()
			}
			siege := s.besiege()
			for range 20 {
				siege.during(s.flushRuleset)
			}
			siege.lift()
		})
	}
}

// TestOwnedTableIsOursAlone: changes by others are refused, with the daemon dead or alive.
func TestOwnedTableIsOursAlone(t *testing.T) {
	s := ownedGuard(t, nil)
	ours := nftables.NewObjects(0)
	for _, daemon := range []string{"alive", "dead"} {
		if daemon == "dead" {
			s.die()
		}
		s.refused(func(c *nft.Conn) { c.DelTable(ours.Table) })
		s.refused(func(c *nft.Conn) { c.FlushChain(ours.Guard) })
		s.refused(func(c *nft.Conn) { c.FlushSet(ours.Guarded) })
		s.refused(func(c *nft.Conn) {
			c.InsertRule(&nft.Rule{Table: ours.Table, Chain: ours.Guard, Exprs: nftables.Accept().Exprs})
		})
		s.dark("192.0.2.3", "192.0.2.1", "22")
		s.connect("192.0.2.2", "192.0.2.1", "22")
	}
}

// TestTakeover: another process takes over the guard that one left, without an instant in which it is open.
func TestTakeover(t *testing.T) {
	toPlain := func(c *Config) { c.plain = true }
	toOwned := func(c *Config) { c.plain = false }
	for _, test := range []struct {
		name     string
		from, to func(*Config)
		between  func(*site)
	}{
		{"of a keeper", toOwned, toOwned, nil},
		{"of an orphan", toOwned, toOwned, (*site).orphan},
		{"of a plain table", toPlain, toOwned, nil},
		{"of a keeper by a plain table", toOwned, toPlain, nil},
		{"of an orphan by a plain table", toOwned, toPlain, (*site).orphan},
		{"of a plain table by a plain table", toPlain, toPlain, nil},
		{"of a table that cannot be mended", toOwned, toOwned, func(s *site) {
			s.orphan()
			s.another(func(c *nft.Conn) { // it is an orphan, so any tool can
				ours := nftables.NewObjects(0)
				extra := *ours.Ended
				c.DelChain(&extra)
				c.AddChain(nftables.Hooked(&extra, nft.ChainHookForward, 0)) // of another kind than ours
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newOwned(t, test.from)
			s.open()
			s.load(0)
			s.grant("alice", "192.0.2.2", long)
			siege := s.besiege()
			for range 5 {
				siege.during(func() {
					test.from(&s.config)
					s.open() // closes the one before
					s.load(0)
					s.die()
					if test.between != nil {
						test.between(s)
					}
					test.to(&s.config)
					s.open()
					s.load(0)
				})
			}
			siege.lift()
			if has := s.table().Flags == nftables.TableOwner|nftables.TablePersist; has == s.config.plain {
				t.Errorf("the table's flags are %#x", s.table().Flags)
			}
			if s.Persists() == s.config.plain {
				t.Errorf("the guard reports that it persists: %v", s.Persists())
			}
			if !s.isGone(nftables.RelayName) {
				t.Error("the standby table is still there")
			}
			s.grant("bob", "192.0.2.4", long)
			s.connect("192.0.2.4", "192.0.2.1", "22")
		})
	}
}

// isGone reports whether there is no table with that name.
func (s *site) isGone(name string) bool {
	s.Helper()
	gone := true
	s.another(func(c *nft.Conn) {
		tables := lab.Value(c.ListTables())(s)
		for _, t := range tables {
			gone = gone && t.Name != name
		}
	})
	return gone
}

// TestKeepersDoNotPileUp: each load leaves one keeper, and the removal of the guard none.
func TestKeepersDoNotPileUp(t *testing.T) {
	s := ownedGuard(t, nil)
	first := s.backend.(*nftables.Backend).Keeper
	s.open()
	second := s.backend.(*nftables.Backend).Keeper
	if !first.Lives() || !second.Lives() {
		t.Fatal("a daemon that starts has a keeper of its own besides the one that holds the table")
	}
	s.load(0)
	lab.Eventually(t, "the end of the first keeper", func() bool { return !first.Lives() })
	s.must(s.backend.Remove())
	if second.Lives() || s.Persists() {
		t.Error("a keeper outlives the guard")
	}
	s.open()
	third := s.backend.(*nftables.Backend).Keeper
	s.die()
	lab.Eventually(t, "the end of a keeper that holds nothing", func() bool { return !third.Lives() })
}

// TestKeeperEndsWithTheStateDirectory: without its file the keeper could no longer be found.
func TestKeeperEndsWithTheStateDirectory(t *testing.T) {
	s := ownedGuard(t, nil)
	keeper := s.backend.(*nftables.Backend).Keeper
	s.must(os.RemoveAll(s.config.State))
	lab.Eventually(t, "the end of the keeper", func() bool { return !keeper.Lives() })
	s.die()
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestKilledKeeper: the daemon still owns the table, and reports that it does not persist.
func TestKilledKeeper(t *testing.T) {
	s := ownedGuard(t, nil)
	lab.Eventually(t, "the guard to report that it does not persist without a keeper", func() bool {
		s.endKeepers() // it takes the lock a moment after the order to hold
		return !s.Persists()
	})
	s.flushRuleset()
	s.dark("192.0.2.3", "192.0.2.1", "22")
	s.grant("bob", "192.0.2.4", long)
	s.connect("192.0.2.4", "192.0.2.1", "22")
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestKeeperHasNoPower: the process that holds the table can do nothing with it.
func TestKeeperHasNoPower(t *testing.T) {
	s := ownedGuard(t, nil)
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(s.backend.(*nftables.Backend).Keeper.PID),
		"task/*/status"))
	s.must(err)
	if len(threads) == 0 {
		t.Fatal("the keeper has no threads")
	}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended in the meantime
		}
		s.must(err)
		for _, want := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
			"CapInh:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(status), want+"\n") {
				t.Errorf("%s lacks %q", thread, want)
			}
		}
	}
}

// TestTeardownOfAnOwnedTable: by another process than the table's owner.
func TestTeardownOfAnOwnedTable(t *testing.T) {
	for _, daemon := range []string{"alive", "dead", "dead, its keeper too"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			s := ownedGuard(t, nil)
			var ended <-chan error
			switch daemon {
			case "alive":
				ended = s.watch()
			case "dead":
				s.die()
			default:
				s.die()
				s.orphan()
			}
			s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
			if daemon == "alive" {
				s.ends(ended, ErrTornDown)
			}
			if !s.isGone(nftables.TableName) {
				t.Error("the table is still there")
			}
			if pid, err := keeper.LockHolder(s.keeperLock()); pid != 0 || err != nil {
				t.Errorf("keeper %d is left, %v", pid, err)
			}
			session := s.connect("192.0.2.3", "192.0.2.1", "22")
			s.open()
			s.load(0)
			s.echoes(session) // the next load is a first load
			s.dark("192.0.2.3", "192.0.2.1", "22")
		})
	}
}

func (s *site) keeperLock() *os.File {
	s.Helper()
	f := lab.Value(keeper.OpenFile(s.config.State, "", false))(s)
	s.Cleanup(func() { f.Close() })
	return f
}

// TestTeardownOfAStoppedDaemon: the error names the reason.
func TestTeardownOfAStoppedDaemon(t *testing.T) {
	s := ownedGuard(t, nil) // Watch does not run
	err := s.gw.Do(func() error { return Teardown(s.config.State) })
	if err == nil || s.isGone(nftables.TableName) {
		t.Fatalf("got %v, want the error that a running spa-server has the table", err)
	}
	s.dark("192.0.2.3", "192.0.2.1", "22")
	s.ends(s.watch(), ErrTornDown) // the daemon runs again, and finds the phase
	s.connect("192.0.2.3", "192.0.2.1", "22")
}

// TestAnotherStateDirectory: a table that the keeper of a dead daemon holds is taken over, whatever its state
// directory.
func TestAnotherStateDirectory(t *testing.T) {
	s := ownedGuard(t, nil)
	s.die()
	s.config.State = t.TempDir()
	s.open()
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
	s.dark("192.0.2.2", "192.0.2.1", "22") // that grant is in the other directory's ledger
}

// TestOwnedUnconfirmedGuardLapses: the kernel removes the guard even if the daemon is dead, and nothing that is left
// guards.
func TestOwnedUnconfirmedGuardLapses(t *testing.T) {
	for _, daemon := range []string{"alive", "dead"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			inTime(t, time.Second, func(within time.Duration) bool {
				s := newOwned(t, nil)
				s.open()
				early := s.try(within).stands("192.0.2.3", "192.0.2.1", "22")
				if daemon == "alive" {
					s.ends(s.watch(), ErrUnconfirmed)
					if !s.isGone(nftables.TableName) {
						t.Error("the table is still there")
					}
				} else {
					s.die()
				}
				lab.Eventually(t, "the open port", func() bool { return s.isOpen("192.0.2.3", "192.0.2.1", "22") })
				return early
			})
		})
	}
}

func TestCanPersist(t *testing.T) {
	s := newSite(t, nil)
	s.must(s.gw.Do(func() error {
		if !CanPersist() {
			lab.KernelLacks(t, "tables that have an owner (Linux 6.9)")
		}
		return nil
	}))
	if !s.isGone("spa-probe") {
		t.Error("the probe left a table behind")
	}
}

// TestKernelWithoutOwners: the server reports what a flush does on such a kernel, and how to prevent it.
func TestKernelWithoutOwners(t *testing.T) {
	words := []string{"another tool can flush", "6.9", "until the server starts", "guard --print",
		"/etc/nftables.conf", `persist = "file"`}
	s := newSite(t, nil) // as on such a kernel
	s.open()
	s.says(s.Describe(), words...)
	s = newSite(t, fromFile)
	s.open()
	if said := s.Describe(); strings.Contains(said, words[0]) {
		t.Errorf("in a file: got %q", said)
	}
	s = newOwned(t, nil)
	s.open()
	if said := s.Describe(); strings.Contains(said, words[0]) {
		t.Errorf("with an owner: got %q", said)
	}
}
