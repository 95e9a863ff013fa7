package firewall

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// adminTable is a table of the administrator's that drops by default.
const adminTable = `
table inet filter {
	set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }
	set spa6 { type ipv6_addr . inet_proto . inet_service; flags timeout; }
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto ipv6-icmp accept
		ip saddr . meta l4proto . th dport @spa4 accept
		ip6 saddr . meta l4proto . th dport @spa6 accept
	}
}
`

// nft runs commands of the real program on the gateway.
func (s *site) nft(script string) string {
	s.Helper()
	return s.runNFT(script, "-f", "-")
}

func (s *site) nftOn(h *lab.Host, script string) {
	s.Helper()
	cmd := exec.Command(lab.NeedProgram(s, "nft", "apt-get install nftables"), "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, code := lab.Run(s, h, cmd); code != 0 {
		s.Fatalf("nft: exit %d: %s", code, out)
	}
}

// runNFT runs the real program on the gateway.
func (s *site) runNFT(input string, args ...string) string {
	s.Helper()
	cmd := exec.Command(lab.NeedProgram(s, "nft", "apt-get install nftables"), args...)
	cmd.Stdin = strings.NewReader(input)
	out, code := lab.Run(s, s.gw, cmd)
	if code != 0 {
		s.Fatalf("nft: exit %d: %s", code, out)
	}
	return out
}

func admit(c *Config) {
	c.Mode = Admit
	c.Admit = AdmitSets{Family: "inet", Table: "filter", Set4: "spa4", Set6: "spa6"}
}

// admittingSite makes a site whose host drops by default.
func admittingSite(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := newSite(t, func(c *Config) {
		admit(c)
		if change != nil {
			change(c)
		}
	})
	s.nft(adminTable)
	return s
}

func admitted(t *testing.T) *site {
	t.Helper()
	s := admittingSite(t, nil)
	s.open()
	s.load(0)
	return s
}

func TestAdmit(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := admitted(t)
		s.dark(f.alice, f.gateway, "22")
		s.grant("alice", f.alice, long)
		session := s.connect(f.alice, f.gateway, "22")
		s.dark(f.stranger, f.gateway, "22")
		s.grant("bob", f.alice, long)
		s.revoke(Match{Client: "alice"})
		s.connect(f.alice, f.gateway, "22")
		s.revoke(Match{Client: "bob"})
		s.dark(f.alice, f.gateway, "22")
		s.echoes(session)
		s.grant("alice", f.alice, 500*time.Millisecond)
		s.die()
		lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, "22") })
	})
}

// TestAdmitProlongs: a grant can be prolonged, even one that a later load finds.
func TestAdmitProlongs(t *testing.T) {
	s := admitted(t)
	s.grant("alice", "192.0.2.2", 500*time.Millisecond)
	end := s.Grants(time.Now())[0].Until
	s.grant("alice", "192.0.2.2", long)
	s.open()
	s.load(0)
	lab.Eventually(t, "the end of the shorter", func() bool { return time.Now().After(end) })
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.config.Keep = func(Grant) bool { return false } // revoked while no daemon ran
	s.open()
	s.load(0)
	s.dark("192.0.2.2", "192.0.2.1", "22")
}

// TestAdmitMoment: a grant shorter than the kernel's unit of time ends, and does not stay for ever.
func TestAdmitMoment(t *testing.T) {
	s := admitted(t)
	now := time.Now()
	g := sshGrant("alice", "192.0.2.2", 0)
	g.Until = now.Add(time.Microsecond)
	s.must(s.Grant(t.Context(), []Grant{g}, now))
	lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "22") })
}

// TestAdmitPutsBack: whatever another tool does with the administrator's table, live grants come back.
func TestAdmitPutsBack(t *testing.T) {
	for name, script := range map[string]string{
		"reloaded":       "flush ruleset\n" + adminTable,
		"table replaced": "delete table inet filter\n" + adminTable,
		"sets flushed":   "flush set inet filter spa4\nflush set inet filter spa6",
		"element deleted": "delete element inet filter spa4 { 192.0.2.2 . tcp . 22 }\n" +
			"delete element inet filter spa6 { 2001:db8::2 . tcp . 22 }",
	} {
		t.Run(name, func(t *testing.T) {
			s := admitted(t)
			s.watch()
			s.grant("alice", "192.0.2.2", long)
			s.grant("alice", "2001:db8::2", long)
			s.nft(script)
			for _, f := range bothFamilies {
				lab.Eventually(t, "the grant", func() bool { return s.isOpen(f.alice, f.gateway, "22") })
				s.dark(f.stranger, f.gateway, "22")
			}
		})
	}
}

// TestAdmitWaitsForTheTable: the administrator's table may be missing for a while; no grant is lost, and the error of
// a new grant names the missing set.
func TestAdmitWaitsForTheTable(t *testing.T) {
	s := admitted(t)
	s.grant("alice", "192.0.2.2", long)
	n := s.counts("could not be put back")
	s.watch()
	s.nft("delete table inet filter\ntable inet filter { chain input { type filter hook input priority 0; policy drop; " +
		"meta l4proto ipv6-icmp accept; }; }")
	lab.Eventually(t, "the failure to be reported", func() bool { return n.Load() == 1 })
	err := s.Grant(t.Context(), []Grant{sshGrant("bob", "192.0.2.4", long)}, time.Now())
	if err == nil || !strings.Contains(err.Error(), "nft add set inet filter spa4") {
		t.Errorf("got %v, want the command that makes the set", err)
	}
	s.nft("delete table inet filter\n" + adminTable)
	lab.Eventually(t, "the grant", func() bool { return s.isOpen("192.0.2.2", "192.0.2.1", "22") })
	s.dark("192.0.2.4", "192.0.2.1", "22")
}

// TestAdmitOwnChangesWakeNobody: our own changes, the administrator's changes that take nothing from us, and the ends
// of grants cause no put-back.
func TestAdmitOwnChangesWakeNobody(t *testing.T) {
	s := admitted(t)
	n := s.counts("put back")
	s.watch()
	for range 20 {
		s.grant("alice", "192.0.2.2", long)
		s.revoke(Match{})
	}
	s.nft("add element inet filter spa4 { 192.0.2.9 . tcp . 80 }\nadd rule inet filter input tcp dport 443 accept")
	s.grant("alice", "192.0.2.2", 300*time.Millisecond)
	lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "22") })
	s.nft("flush set inet filter spa6")
	s.nft("delete element inet filter spa4 { 192.0.2.9 . tcp . 80 }")
	lab.Eventually(t, "the put-back", func() bool { return n.Load() > 0 })
	s.load(0)
	if got := n.Load(); got != 1 {
		t.Errorf("it was put back %d times, want once", got)
	}
}

// TestAdmitLeavesOtherElements: the administrator's elements stay as they are, even for the address and port of a
// grant.
func TestAdmitLeavesOtherElements(t *testing.T) {
	s := admittingSite(t, nil)
	s.nft(`add element inet filter spa4 { 192.0.2.3 . tcp . 22 comment "admin", 192.0.2.4 . tcp . 22 }`)
	s.open()
	s.load(0)
	s.grant("alice", "192.0.2.3", 300*time.Millisecond)
	s.grant("alice", "192.0.2.4", long)
	s.grant("alice", "192.0.2.2", long)
	s.revoke(Match{Client: "alice"})
	s.connect("192.0.2.3", "192.0.2.1", "22")
	s.dark("192.0.2.2", "192.0.2.1", "22")
	s.grant("alice", "192.0.2.4", long)
	s.open()
	s.load(0)
	s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
	for _, a := range []string{"192.0.2.3", "192.0.2.4"} {
		s.connect(a, "192.0.2.1", "22")
	}
	if out := s.nft("list set inet filter spa4"); !strings.Contains(out, `comment "admin"`) ||
		strings.Contains(out, "expires") {
		t.Errorf("the administrator's elements were changed: %s", out)
	}
}

// TestAdmitOutlivesOtherElement: a grant lasts longer than the administrator's element that took its place.
func TestAdmitOutlivesOtherElement(t *testing.T) {
	s := admitted(t)
	s.watch()
	s.nft("add element inet filter spa4 { 192.0.2.2 . tcp . 22 timeout 1s }")
	s.grant("alice", "192.0.2.2", long)
	lab.Eventually(t, "an element of ours", func() bool {
		return strings.Contains(s.nft("list set inet filter spa4"), nftables.OurComment)
	})
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

func TestAdmitRefusesSets(t *testing.T) {
	for name, test := range map[string]struct{ table, want string }{
		"no table": {"", "there is no set spa4"},
		"no set":   {"table inet filter { }", "there is no set spa4"},
		"one set": {"table inet filter { set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }; }",
			"there is no set spa6"},
		"type": {"table inet filter { set spa4 { type ipv4_addr . inet_service; flags timeout; }; }",
			"keys of the wrong type"},
		"timeout": {"table inet filter { set spa4 { type ipv4_addr . inet_proto . inet_service; }; }", "timeout flag"},
		"interval": {"table inet filter { set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout, " +
			"interval; }; }", "interval flag"},
		"map": {"table inet filter { map spa4 { type ipv4_addr . inet_proto . inet_service : verdict; flags " +
			"timeout; }; }", "is a map"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, admit)
			if test.table != "" {
				s.nft(test.table)
			}
			err := s.gw.Do(func() error { _, err := New(s.config, nil); return err })
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "flags timeout; }'") {
				t.Fatalf("got %v, want %q and the command that makes the set", err, test.want)
			}
		})
	}
}

// TestAdmitRecipe: the command in the error makes the set that is needed.
func TestAdmitRecipe(t *testing.T) {
	s := newSite(t, func(c *Config) {
		admit(c)
		c.Backend = BackendAuto
	})
	s.nft("add table inet filter")
	for range 2 {
		err := s.gw.Do(func() error { _, err := New(s.config, nil); return err })
		if err == nil {
			t.Fatal("got no error")
		}
		_, line, _ := strings.Cut(err.Error(), "nft add")
		s.nft("add" + strings.ReplaceAll(line, "'", ""))
	}
	s.open()
}

func TestAdmitOneFamily(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Mode = Admit
		c.Admit = AdmitSets{Family: "ip", Table: "filter", Set4: "doors"}
	})
	s.nft(`table ip filter {
		set doors { type ipv4_addr . inet_proto . inet_service; flags timeout; }
		chain input { type filter hook input priority 0; policy drop; ip saddr . meta l4proto . th dport @doors accept; }
	}`)
	s.open()
	s.load(0)
	s.grant("alice", "192.0.2.2", long)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	err := s.Grant(t.Context(), []Grant{sshGrant("alice", "2001:db8::2", long)}, time.Now())
	if err == nil || len(s.Grants(time.Now())) != 1 {
		t.Errorf("got %v, want that no set is configured for IPv6", err)
	}
}

func TestAdmitTeardown(t *testing.T) {
	for _, daemon := range []string{"alive", "dead"} {
		t.Run("daemon "+daemon, func(t *testing.T) {
			s := admitted(t)
			s.nft("add element inet filter spa4 { 192.0.2.3 . tcp . 22 }")
			s.grant("alice", "192.0.2.2", long)
			s.grant("alice", "2001:db8::2", long)
			var ended <-chan error
			if daemon == "alive" {
				ended = s.watch()
			} else {
				s.die()
			}
			s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
			if daemon == "alive" {
				s.ends(ended, ErrTornDown)
			}
			s.dark("192.0.2.2", "192.0.2.1", "22")
			s.dark("2001:db8::2", "2001:db8::1", "22")
			s.connect("192.0.2.3", "192.0.2.1", "22")
			if !s.isGone(nftables.TableName) {
				t.Error("our table is still there")
			}
		})
	}
}

// TestAdmitTeardownWithoutTheTable: a teardown works even if the administrator's table is gone.
func TestAdmitTeardownWithoutTheTable(t *testing.T) {
	s := admitted(t)
	s.grant("alice", "192.0.2.2", long)
	s.nft("delete table inet filter")
	ended := s.watch()
	s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
	s.ends(ended, ErrTornDown)
}

// TestAdmitAfterGuard: in mode admit the ports that an earlier guard shut are the administrator's to shut.
func TestAdmitAfterGuard(t *testing.T) {
	s := newOwned(t, nil)
	s.open()
	s.load(0)
	s.grant("alice", "192.0.2.2", long)
	s.dark("192.0.2.3", "192.0.2.1", "22")
	s.die()
	s.nft(strings.Replace(adminTable, "policy drop", "policy accept", 1))
	admit(&s.config)
	s.open()
	s.load(0)
	s.connect("192.0.2.3", "192.0.2.1", "22")
	s.nft("delete table inet filter\n" + adminTable)
	s.load(0)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.dark("192.0.2.3", "192.0.2.1", "22")
	s.die()
	s.config.Mode = Guard
	s.open()
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestAdmitCut: no mark shows what the administrator's rules let in; sessions that are not for this host are left
// alone.
func TestAdmitCut(t *testing.T) {
	s := admitted(t)
	accept, inner := s.listen(":2300"), s.listenOn(s.behind(), ":2300")
	s.grantPorts("one", "192.0.2.2", long, "tcp/2300")
	s.grantPorts("one", "192.0.2.3", long, "tcp/2300")
	v, theirs := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300"), s.talk(accept, "192.0.2.3", "192.0.2.1", "2300")
	transit := s.talk(inner, "192.0.2.2", "198.51.100.5", "2300")
	s.must(s.gw.Local("203.0.113.0/24")) // addresses of the host that no interface has
	s.must(s.client.Route("203.0.113.0/24", "192.0.2.1"))
	local := s.talk(accept, "192.0.2.2", "203.0.113.7", "2300")
	gs := s.revoke(Match{})
	if n, err := s.Cut(t.Context(), gs[:1]); n != 2 || err != nil {
		t.Errorf("got %d sessions ended, %v, want 2", n, err)
	}
	s.over(v)
	s.over(local)
	s.mutual(theirs, true)
	s.mutual(transit, true)
}

func TestAdmitConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"family":   func(c *Config) { c.Admit.Family = "arp" },
		"table":    func(c *Config) { c.Admit.Table = "" },
		"sets":     func(c *Config) { c.Admit.Set4, c.Admit.Set6 = "", "" },
		"cut":      func(c *Config) { c.Cut = c.Guarded },
		"iptables": func(c *Config) { c.Backend = BackendIptables },
		"mode":     func(c *Config) { c.Mode = 9 },
		"persist":  func(c *Config) { c.Persist = 9 },
	} {
		c := Config{Guarded: rangesOf("tcp/22"), State: t.TempDir()}
		admit(&c)
		change(&c)
		if f, err := New(c, nil); err == nil || f != nil {
			t.Errorf("%s: got no error", name)
		}
	}
	s := admittingSite(t, nil)
	s.open()
	if err := s.Load(t.Context(), long, time.Now()); err == nil || errors.Is(err, ErrForeign) {
		t.Errorf("got %v, want the error that there is nothing to confirm", err)
	}
}
