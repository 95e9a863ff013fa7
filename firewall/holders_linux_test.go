package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func (s *site) revoke(m Match) []Grant {
	s.Helper()
	gs := lab.Value(s.Revoke(s.Context(), m, time.Now()))(s)
	return gs
}

func TestTwoClientsBehindOneAddress(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.grant("alice", f.alice, long)
		s.grant("bob", f.alice, 200*time.Millisecond)
		lab.Eventually(t, "bob's end", func() bool { return len(s.GrantsOf("bob", time.Now())) == 0 })
		s.connect(f.alice, f.gateway, "22")

		s.grant("bob", f.alice, long)
		if gs := s.revoke(Match{Client: "alice"}); len(gs) != 1 || gs[0].Client != "alice" {
			t.Errorf("revoked %v, want alice's only", gs)
		}
		s.connect(f.alice, f.gateway, "22")
		s.revoke(Match{Client: "bob", Services: []string{"web"}})
		s.revoke(Match{Client: "bob", Source: netip.MustParseAddr(f.stranger)})
		s.connect(f.alice, f.gateway, "22")
		s.revoke(Match{Client: "bob", Source: netip.MustParseAddr(f.alice)})
		s.dark(f.alice, f.gateway, "22")
	})
}

// TestRevokeShortens: the address stays open as long as the remaining client may stay, and no longer.
func TestRevokeShortens(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		inTime(t, 600*time.Millisecond, func(within time.Duration) bool {
			s.grant("alice", "192.0.2.2", long)
			s.grant("bob", "192.0.2.2", within)
			s.revoke(Match{Client: "alice"})
			return s.isOpen("192.0.2.2", "192.0.2.1", "22")
		})
		s.grant("carol", "192.0.2.2", 100*time.Millisecond) // nor longer because of a later client
		lab.Eventually(t, "bob's end", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "22") })
	})
}

func TestShorterAgainKeepsTheLonger(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.grant("alice", "192.0.2.2", 100*time.Millisecond)
	gs := s.Grants(time.Now().Add(30 * time.Second))
	if len(gs) != 1 {
		t.Fatalf("got %d grants after half a minute, want 1", len(gs))
	}
	if n := spare(s.ledger); n != s.config.slots-1 {
		t.Errorf("%d slots are free, want all but one", n)
	}
	s.open()
	s.load(0)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	if gs := s.Grants(time.Now().Add(30 * time.Second)); len(gs) != 1 {
		t.Errorf("the ledger kept the shorter end")
	}
}

// TestProlongedIsRemembered: a later grant does not shorten a prolonged one.
func TestProlongedIsRemembered(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", 100*time.Millisecond)
	s.grant("alice", "192.0.2.2", long)
	s.grant("bob", "192.0.2.2", 300*time.Millisecond)
	lab.Eventually(t, "bob's end", func() bool { return len(s.GrantsOf("bob", time.Now())) == 0 })
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

func TestGrantIsAllOrNone(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, test := range []struct {
			name   string
			change func(*Config)
		}{
			{"ledger", func(c *Config) { c.slots = 2 }},
			{"kernel", func(c *Config) { c.size = 2 }},
		} {
			t.Run(test.name, func(t *testing.T) {
				s := k.guarded(t, test.change)
				s.grant("alice", "192.0.2.2", long)
				err := s.Grant(t.Context(), []Grant{
					sshGrant("bob", "192.0.2.3", long), sshGrant("carol", "192.0.2.4", long),
				}, time.Now())
				if !errors.Is(err, guard.ErrFull) {
					t.Fatalf("got %v, want ErrFull", err)
				}
				s.dark("192.0.2.3", "192.0.2.1", "22")
				s.connect("192.0.2.2", "192.0.2.1", "22")
				s.grant("alice", "192.0.2.2", 2*long) // existing grants can be prolonged
				s.grant("bob", "192.0.2.3", long)     // and there is room for one
				s.connect("192.0.2.3", "192.0.2.1", "22")
				s.open()
				s.load(0)
				if gs := s.Grants(time.Now()); len(gs) != 2 {
					t.Errorf("got %v from the ledger, want alice's and bob's", gs)
				}
			})
		}
	})
}

// TestFailedBatchLeavesNoTrace: a grant that the kernel refused is not in the ledger.
func TestFailedBatchLeavesNoTrace(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.foreign()
	if err := s.Grant(t.Context(), []Grant{sshGrant("bob", "192.0.2.3", long)}, time.Now()); !errors.Is(err, ErrForeign) {
		t.Fatalf("got %v, want ErrForeign", err)
	}
	if err := s.Grant(t.Context(), []Grant{sshGrant("alice", "192.0.2.2", 2*long)}, time.Now()); err == nil {
		t.Fatal("got no error")
	}
	s.flushRuleset()
	s.open()
	s.load(0)
	gs := s.Grants(time.Now())
	if len(gs) != 1 || gs[0].Client != "alice" || gs[0].Until.After(time.Now().Add(long)) {
		t.Errorf("got %v from the ledger, want alice's as it was", gs)
	}
}

func TestFailedRevokeLeavesTheLedger(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	nft := s.backend
	s.backend = failing{newDryRun(s.log)}
	if _, err := s.Revoke(t.Context(), Match{}, time.Now()); !errors.Is(err, errFailing) {
		t.Fatalf("got %v, want %v", err, errFailing)
	}
	s.backend = nft
	s.open()
	s.load(0)
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

// foreign replaces our table with one that another tool made.
func (s *site) foreign() {
	s.Helper()
	s.another(func(c *nft.Conn) {
		table := c.AddTable(&nft.Table{Name: nftables.TableName, Family: nft.TableFamilyINet})
		c.DelTable(table)
		c.AddTable(table)
		c.AddChain(&nft.Chain{Name: "precious", Table: table})
	})
}

func (s *site) precious() bool {
	found := false
	s.another(func(c *nft.Conn) {
		_, err := c.ListChain(&nft.Table{Name: nftables.TableName, Family: nft.TableFamilyINet}, "precious")
		found = err == nil
	})
	return found
}

func TestForeignTableIsLeftAlone(t *testing.T) {
	s := newSite(t, nil)
	s.foreign()
	s.open()
	err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) })
	if !errors.Is(err, ErrForeign) {
		t.Errorf("load: got %v, want ErrForeign", err)
	}
	if err := s.gw.Do(func() error { return Teardown(s.config.State) }); !errors.Is(err, ErrForeign) {
		t.Errorf("teardown: got %v, want ErrForeign", err)
	}
	if !s.precious() {
		t.Error("the foreign table was touched")
	}
}

// TestRefusedTeardownMarksNothing: the next load is not a first load.
func TestRefusedTeardownMarksNothing(t *testing.T) {
	s := guarded(t, nil)
	s.foreign()
	if err := s.gw.Do(func() error { return Teardown(s.config.State) }); !errors.Is(err, ErrForeign) {
		t.Fatalf("got %v, want ErrForeign", err)
	}
	s.flushRuleset()
	session := s.connect("192.0.2.3", "192.0.2.1", "22")
	s.load(0)
	s.dead(session)
}

// TestLostAnswers: a grant whose answer the kernel could not deliver is not given, and answers that were not read are
// not taken for those of the next batch.
func TestLostAnswers(t *testing.T) {
	s := guarded(t, nil)
	socket := s.backend.(*nftables.Backend).Socket
	s.must(socket.SetReadBuffer(1))
	for range 100 { // the kernel has no room for more answers
		_, err := socket.Send(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN,
				Flags: netlink.Request | netlink.Acknowledge},
			Data: make([]byte, 4),
		})
		s.must(err)
	}
	gs := []Grant{{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"), Ports: rangesOf("tcp/22"),
		Until: time.Now().Add(long)}}
	if err := s.Grant(t.Context(), gs, time.Now()); !errors.Is(err, nl.ErrNoAnswer) {
		t.Fatalf("got %v, want that the answer was lost", err)
	}
	s.dark("192.0.2.2", "192.0.2.1", "22")
	s.must(socket.SetReadBuffer(nl.SocketBuffer))
	s.flushRuleset()
	s.grant("alice", "192.0.2.2", long) // finds that the guard is gone
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

func TestKilledProcessLeavesItsGrants(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.grant("alice", f.alice, long)
		end := s.Grants(time.Now())[0].Until
		session := s.connect(f.alice, f.gateway, "22")
		s.grant("bob", f.stranger, 1500*time.Millisecond)
		s.Firewall = nil // it is never closed, as after kill -9
		s.open()
		s.load(0)
		lab.Eventually(t, "bob's end", func() bool { return !s.isOpen(f.stranger, f.gateway, "22") })
		gs := s.Grants(time.Now().Add(2 * time.Second)) // the kernel may be a moment ahead
		if len(gs) != 1 || gs[0].Client != "alice" || gs[0].Service != "ssh" ||
			gs[0].Until.After(end.Add(time.Millisecond)) {
			t.Fatalf("got %v, want alice's until %v", gs, end)
		}
		s.connect(f.alice, f.gateway, "22")
		s.shorten(Match{}, 500*time.Millisecond)
		lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "22") })
		s.echoes(session)
	})
}

func TestRevokedStaysRevokedOverARestart(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.grant("alice", "192.0.2.2", long)
		s.revoke(Match{Client: "alice"})
		s.open()
		s.load(0)
		s.dark("192.0.2.2", "192.0.2.1", "22")
	})
}

func TestRebootEmptiesTheLedger(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.config.bootID = "another boot"
	s.open()
	s.load(0)
	if gs := s.Grants(time.Now()); len(gs) != 0 {
		t.Errorf("got %v after a reboot, want none", gs)
	}
	s.dark("192.0.2.2", "192.0.2.1", "22")
}

// TestClockSetBackWhileDown: the boot clock ends the grant.
func TestClockSetBackWhileDown(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	back := time.Now().Add(-time.Hour)
	s.config.Now = func() time.Time { return back }
	s.open()
	s.must(s.gw.Do(func() error { return s.Load(t.Context(), 0, back) }))
	gs := s.Grants(back)
	if len(gs) != 1 || gs[0].Until.After(back.Add(long)) {
		t.Errorf("got %v, want a minute at most from %v", gs, back)
	}
}

func TestDamagedRecords(t *testing.T) {
	s := guarded(t, nil)
	for i := 2; i <= 6; i++ {
		s.grant("alice", fmt.Sprintf("192.0.2.%d", i), long)
	}
	s.must(s.Firewall.Close())
	path := filepath.Join(s.config.State, ledger.FileName)
	b := lab.Value(os.ReadFile(path))(s)
	records := b[ledger.HeaderSize:]
	records[0]++                                                                          // a later end
	records[ledger.RecordSize+31]++                                                       // another source
	copy(records[2*ledger.RecordSize+64:], make([]byte, ledger.RecordSize-64))            // torn in the middle
	copy(records[3*ledger.RecordSize:4*ledger.RecordSize], records[4*ledger.RecordSize:]) // a record may be anywhere,
	records[3*ledger.RecordSize+98] = 200                                                 // but not with 200 ranges
	s.must(os.WriteFile(path, b, 0o600))
	s.Firewall = nil
	s.open()
	s.load(0)
	gs := s.Grants(time.Now())
	if len(gs) != 1 || gs[0].Source != netip.MustParseAddr("192.0.2.6") {
		t.Errorf("got %v, want 192.0.2.6 only", gs)
	}
	s.grant("alice", "192.0.2.2", long) // the slots are used again
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

func TestLedgerOfSomethingElse(t *testing.T) {
	s := newSite(t, nil)
	s.must(os.WriteFile(filepath.Join(s.config.State, ledger.FileName), []byte(strings.Repeat("x", 5000)), 0o600))
	err := s.gw.Do(func() error { _, err := New(s.config, nil); return err })
	if err == nil || !strings.Contains(err.Error(), "not a grant ledger") {
		t.Errorf("got %v, want that it is not a ledger", err)
	}
}

// TestNothingIsOpenedLater: after New has returned, the directory is not needed any more.
func TestNothingIsOpenedLater(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	s.must(os.RemoveAll(s.config.State))
	s.load(0)
	ended := s.watch()
	s.grant("alice", "192.0.2.2", long)
	s.flushRuleset()
	lab.Eventually(t, "the guard", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.revoke(Match{})
	select {
	case err := <-ended:
		t.Errorf("watch ended: %v", err)
	default:
	}
	if _, err := os.Stat(s.config.State); !os.IsNotExist(err) {
		t.Errorf("a file was made in the state directory")
	}
}

func TestManyRangesInOneGrant(t *testing.T) {
	s := newSite(t, guarding("tcp/6000-6100"))
	g := sshGrant("alice", "192.0.2.2", long)
	g.Ports = nil
	for i := range 9 {
		g.Ports = append(g.Ports, ports(fmt.Sprintf("tcp/%d-%d", 6000+10*i, 6001+10*i)))
	}
	s.serve(":6081")
	s.open()
	s.load(0)
	s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
	s.open()
	s.load(0)
	s.connect("192.0.2.2", "192.0.2.1", "6081")
	var got []service.Ports
	for _, g := range s.Grants(time.Now()) {
		got = append(got, g.Ports...)
	}
	slices.SortFunc(got, guard.ComparePorts)
	if !slices.Equal(got, g.Ports) {
		t.Errorf("got %v, want %v", got, g.Ports)
	}
	s.revoke(Match{Client: "alice"})
	s.dark("192.0.2.2", "192.0.2.1", "6081")
}

func TestGrantsThatCannotBe(t *testing.T) {
	s := guarded(t, nil)
	good := sshGrant("alice", "192.0.2.2", long)
	for name, spoil := range map[string]func(*Grant){
		"no source":      func(g *Grant) { g.Source = netip.Addr{} },
		"over":           func(g *Grant) { g.Until = time.Now().Add(-time.Second) },
		"no ports":       func(g *Grant) { g.Ports, g.To = nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"no port":        func(g *Grant) { g.Ports = []service.Ports{{Proto: service.TCP}} },
		"long client":    func(g *Grant) { g.Client = strings.Repeat("a", 33) },
		"long service":   func(g *Grant) { g.Service = strings.Repeat("a", 33) },
		"other protocol": func(g *Grant) { g.Ports = []service.Ports{{Proto: 1, Low: 1, High: 1}} },
	} {
		g := good
		spoil(&g)
		if err := s.Grant(t.Context(), []Grant{good, g}, time.Now()); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if gs := s.Grants(time.Now()); len(gs) != 0 {
		t.Errorf("got %v, want none", gs)
	}
	s.dark("192.0.2.2", "192.0.2.1", "22")
}

func TestMissingCapability(t *testing.T) {
	s := newSite(t, nil)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		done <- s.gw.Do(func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			_, err := New(s.config, nil)
			return err
		})
	}()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want that CAP_NET_ADMIN is missing", err)
	}
}

func TestProbe(t *testing.T) {
	s := guarded(t, nil)
	n := s.backend.(*nftables.Backend)
	if len(n.Lacks) != 0 {
		t.Errorf("this kernel lacks %v", n.Lacks)
	}
	// A lookup in the routing table that has no purpose.
	ok, err := n.Has(nftables.Feature{Hook: nft.ChainHookPrerouting,
		Rule: nftables.Raw(&expr.Fib{Register: nftables.Register})})
	if ok || err != nil {
		t.Errorf("got %v, %v for a rule that no kernel accepts, want false", ok, err)
	}
	if ok, err = n.Knows("spa-nothing"); ok || err != nil {
		t.Errorf("got %v, %v for an expression that no kernel has, want false", ok, err)
	}
	s.another(func(c *nft.Conn) {
		tables, err := c.ListTables()
		if err != nil || len(tables) != 1 {
			t.Errorf("got %d tables, %v, want ours only", len(tables), err)
		}
	})
	s.grant("alice", "192.0.2.2", long) // the probe left no answers unread
	s.connect("192.0.2.2", "192.0.2.1", "22")
}
