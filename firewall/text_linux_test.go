package firewall

import (
	"net/netip"
	"testing"

	"sallyport/spa/lab"
)

func full(c *Config) {
	cutting("tcp/2300-2301", "udp/5000")(c)
	c.Knock = append(c.Knock, KnockPort{Port: 5000, Shared: true})
	c.Trusted = []string{"wg0"}
	c.Closed = Reject
	c.Targets = []Target{{
		Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8:1::5")},
		Ports:     rangesOf("tcp/22 udp/53-54")}}
	guarding("tcp/2222", "udp/2222", "tcp/2223")(c)
	c.Forwards = []Forward{{Ports: rangesOf("tcp/2222 udp/2222"), Masquerade: true, To: []netip.AddrPort{
		netip.MustParseAddrPort("198.51.100.7:2200"), netip.MustParseAddrPort("[2001:db8:1::7]:2200")}},
		{Ports: rangesOf("tcp/2223"), Port: 2302}}
}

func fullOnce(c *Config) {
	full(c)
	c.Once = rangesOf("tcp/22 udp/5000")
}

// listing returns what nft prints of our table.
func (s *site) listing() string {
	s.Helper()
	return s.runNFT("", "-nn", "-s", "list", "table", "inet", "spa")
}

// TestText: nft makes the same table from the text as the daemon.
func TestText(t *testing.T) {
	for name, change := range map[string]func(*Config){"plain": nil, "full": full, "once": fullOnce} {
		t.Run(name, func(t *testing.T) {
			s := guarded(t, change)
			text := lab.Value(Rules(s.config))(s)
			want := s.listing()
			s.nft("flush ruleset\n" + text)
			if got := s.listing(); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
			s.nft(text) // without a flush, and again
			if got := s.listing(); got != want {
				t.Errorf("loaded again it differs: %s", got)
			}
		})
	}
}

// TestSavedRuleSet: nft's listing of our table can be loaded again, and guards.
func TestSavedRuleSet(t *testing.T) {
	s := guarded(t, full)
	s.serve(":2300")
	saved := s.listing()
	s.must(s.gw.Do(func() error { return Teardown(s.config.State) }))
	s.connect("192.0.2.3", "192.0.2.1", "22")
	s.nft("flush ruleset\n" + saved)
	if again := s.listing(); again != saved {
		t.Errorf("got %s\nwant %s", again, saved)
	}
	if s.isOpen("192.0.2.3", "192.0.2.1", "22") || s.isOpen("192.0.2.3", "192.0.2.1", "2300") {
		t.Error("a rule set that was saved and loaded again does not guard")
	}
}

func fromFile(c *Config) {
	withOwner(c)
	c.Persist = PersistFile
}

// TestGuardInAFile: the host loads the guard with its own rules, before the daemon starts, while it runs and when it
// is dead; grants come back, and strangers do not get in.
func TestGuardInAFile(t *testing.T) {
	s := newSite(t, fromFile)
	text := lab.Value(Rules(s.config))(s)
	file := "flush ruleset\ntable inet filter { chain input { type filter hook input priority 0; }; }\n" + text
	s.nft(file)
	if s.isOpen("192.0.2.3", "192.0.2.1", "22") {
		t.Error("the guard that was printed does not guard")
	}
	siege := s.besiege()
	s.open()
	s.load(0)
	if s.Persists() {
		t.Error("the guard reports that it persists without an owner")
	}
	ended := s.watch()
	s.grant("alice", "192.0.2.2", long)
	for range 20 {
		s.nft(file)
		lab.Eventually(t, "the grant", func() bool { return s.isOpen("192.0.2.2", "192.0.2.1", "22") })
	}
	select {
	case err := <-ended:
		t.Errorf("Watch ended: %v", err)
	default:
	}
	s.die()
	for range 20 {
		s.nft(file)
		siege.goesOn()
	}
	siege.lift()
	s.open()
	s.load(0)
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

func TestNoText(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"admit":     admit,
		"iptables":  func(c *Config) { c.Backend = BackendIptables },
		"bad ports": func(c *Config) { c.Guarded[0].Low = 0 },
	} {
		c := Config{Guarded: rangesOf("tcp/22")}
		change(&c)
		if text, err := Rules(c); err == nil || text != "" {
			t.Errorf("%s: got no error", name)
		}
	}
}
