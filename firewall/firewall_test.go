package firewall

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func dry(t *testing.T, slots int) *Firewall {
	t.Helper()
	f := lab.Value(New(Config{Backend: BackendDryRun, knobs: knobs{slots: slots}}, slog.New(slog.DiscardHandler)))(t)
	t.Cleanup(func() { f.Close() })
	return f
}

// spare returns how many slots are free.
func spare(l *ledger.Ledger) int {
	free, _ := l.Spare()
	return free
}

func TestDryRun(t *testing.T) {
	f, now := dry(t, 10), time.Unix(1000000000, 0)
	g := Grant{
		Client: "alice", Service: "ssh", Source: netip.MustParseAddr("::ffff:192.0.2.2"),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}, Until: now.Add(time.Minute),
	}
	if err := f.Grant(t.Context(), []Grant{g}, now); err == nil {
		t.Error("granted without a guard")
	}
	lab.Must(t, f.Load(t.Context(), 0, now))
	lab.Must(t, f.Grant(t.Context(), []Grant{g, g}, now))
	if gs := f.Grants(now); len(gs) != 1 || gs[0].Source != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("got %v, want alice's, unmapped", gs)
	}
	if n := len(f.GrantsOf("alice", now.Add(59*time.Second))); n != 1 {
		t.Errorf("got %d held before the end, want 1", n)
	}
	if n := len(f.GrantsOf("alice", g.Until)); n != 0 {
		t.Errorf("got %d held at the end, want 0", n)
	}
	f.endOver(g.Until)
	if f.held.Len()+len(f.held.Leases()) != 0 || spare(f.ledger) != 10 {
		t.Errorf("parts of a grant that has ended are left: %+v", f.held)
	}
}

// TestGrantChecks: invalid grants are refused before anything is done, and only those.
func TestGrantChecks(t *testing.T) {
	now := time.Now()
	addr := netip.MustParseAddr
	port := func(low, high uint16) []service.Ports {
		return []service.Ports{{Proto: service.TCP, Low: low, High: high}}
	}
	to := func(source string, destinations ...string) func(*Grant) {
		return func(g *Grant) {
			g.Source, g.To = addr(source), nil
			for _, d := range destinations {
				g.To = append(g.To, addr(d))
			}
		}
	}
	for name, test := range map[string]struct {
		change func(*Grant)
		good   bool
	}{
		"IPv4":                          {func(g *Grant) {}, true},
		"IPv6":                          {func(g *Grant) { g.Source = addr("2001:db8::2") }, true},
		"a target":                      {func(g *Grant) { g.To = []netip.Addr{addr("198.51.100.1")} }, true},
		"link-local":                    {func(g *Grant) { g.Source = addr("fe80::2%7") }, true},
		"the longest name":              {func(g *Grant) { g.Client = strings.Repeat("a", ledger.NameSize-1) }, true},
		"no source":                     {func(g *Grant) { g.Source = netip.Addr{} }, false},
		"IPv4 link-local":               {func(g *Grant) { g.Source = addr("169.254.0.2") }, false},
		"IPv4 link-local, mapped":       {func(g *Grant) { g.Source = addr("::ffff:169.254.0.2") }, false},
		"IPv4 link-local, with a link":  {func(g *Grant) { g.Source = addr("::ffff:169.254.0.2%7") }, false},
		"link-local, and ended":         {func(g *Grant) { g.Source, g.Until = addr("fe80::2%7"), now }, false},
		"link-local without a link":     {func(g *Grant) { g.Source = addr("fe80::2") }, false},
		"link-local by a name":          {func(g *Grant) { g.Source = addr("fe80::2%eth0") }, false},
		"link-local to a target":        {to("fe80::2%7", "2001:db8::1"), false},
		"link-local outside of its /64": {func(g *Grant) { g.Source = addr("fe80:1::2%7") }, false},
		"an invalid target":             {func(g *Grant) { g.To = []netip.Addr{{}} }, false},
		"an unspecified target":         {func(g *Grant) { g.To = []netip.Addr{addr("::")} }, false},
		"an invalid target, by IPv6":    {func(g *Grant) { g.Source, g.To = addr("2001:db8::2"), []netip.Addr{{}} }, false},
		"any target, by IPv6":           {to("2001:db8::2", "::"), false},
		"any target, by IPv4":           {to("192.0.2.2", "198.51.100.1", "0.0.0.0"), false},
		"ended":                         {func(g *Grant) { g.Until = now }, false},
		"too long a client":             {func(g *Grant) { g.Client = strings.Repeat("a", ledger.NameSize) }, false},
		"too long a service":            {func(g *Grant) { g.Service = strings.Repeat("a", ledger.NameSize) }, false},
		"no ports":                      {func(g *Grant) { g.Ports, g.To = nil, []netip.Addr{addr("192.0.2.1")} }, false},
		"port 0":                        {func(g *Grant) { g.Ports = port(0, 22) }, false},
		"port 0 behind another":         {func(g *Grant) { g.Ports = append(port(22, 22), port(0, 1)...) }, false},
		"a range that ends below":       {func(g *Grant) { g.Ports = port(23, 22) }, false},
		"no protocol":                   {func(g *Grant) { g.Ports = []service.Ports{{Low: 22, High: 22}} }, false},
	} {
		f := dry(t, 10)
		lab.Must(t, f.Load(t.Context(), 0, now))
		g := Grant{Client: "alice", Service: "ssh", Source: addr("192.0.2.2"), Ports: port(22, 22),
			Until: now.Add(time.Minute)}
		test.change(&g)
		err := f.Grant(t.Context(), []Grant{g}, now)
		if gs := f.Grants(now); (err == nil) != test.good || (len(gs) == 1) != test.good {
			t.Errorf("%s: got %v, and %v is granted", name, err, gs)
		}
	}
}

// TestMatches: a link-local source without a link matches that address on every link.
func TestMatches(t *testing.T) {
	h := &ledger.Holding{Source: netip.MustParseAddr("fe80::2"), Link: 7, Service: "ssh"}
	for _, test := range []struct {
		source   string
		services []string
		want     bool
	}{
		{"", nil, true}, {"fe80::2", nil, true}, {"fe80::2%7", nil, true}, {"fe80::2%8", nil, false},
		{"fe80::3%7", nil, false},
		{"", []string{"ssh", "web"}, true}, {"", []string{"web"}, false}, {"", []string{}, false},
		{"fe80::2", []string{"web"}, false},
	} {
		m := Match{Services: test.services}
		if test.source != "" {
			m.Source = netip.MustParseAddr(test.source)
		}
		if got := m.matches(h); got != test.want {
			t.Errorf("%q %q: got %v", test.source, test.services, got)
		}
	}
}

func TestConfigChecks(t *testing.T) {
	for name, c := range map[string]Config{
		"two mark bits": {Mark: 3},
		"closed":        {Closed: 7},
		"no interface":  {Trusted: []string{""}},
		"long name":     {Trusted: []string{strings.Repeat("x", 16)}},
		"no ports":      {Guarded: []service.Ports{{}}},
		"wrong range":   {Guarded: []service.Ports{{Proto: service.TCP, Low: 2, High: 1}}},
		"backend":       {Backend: "ipchains"},
	} {
		if c.Backend == "" {
			c.Backend = BackendDryRun
		}
		if f, err := New(c, nil); err == nil || f != nil {
			t.Errorf("%s: got %v, want an error", name, err)
		}
	}
}

// TestOverlappingRanges: an element that a grant names twice is held once.
func TestOverlappingRanges(t *testing.T) {
	f, now := dry(t, 10), time.Now()
	lab.Must(t, f.Load(t.Context(), 0, now))
	for _, client := range []string{"dave", "alice"} {
		g := Grant{
			Client: client, Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(time.Minute),
			Ports: []service.Ports{{Proto: service.TCP, Low: 20, High: 22}, {Proto: service.TCP, Low: 22, High: 24}},
		}
		if client == "dave" {
			g.Ports = []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}
		}
		lab.Must(t, f.Grant(t.Context(), []Grant{g}, now))
	}
	for _, client := range []string{"dave", "alice"} {
		_, err := f.Revoke(t.Context(), Match{Client: client}, now)
		lab.Must(t, err)
	}
	if n := len(f.held.Leases()); n != 0 {
		t.Errorf("%d elements without a grant are left", n)
	}
}

// TestRoomComesBack: a grant that has ended makes room for the next.
func TestRoomComesBack(t *testing.T) {
	f, now := dry(t, 1), time.Now()
	lab.Must(t, f.Load(t.Context(), 0, now))
	for _, client := range []string{"alice", "bob"} {
		g := Grant{
			Client: client, Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(time.Second),
			Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
		}
		if err := f.Grant(t.Context(), []Grant{g}, now); err != nil {
			t.Fatalf("%s: %v", client, err)
		}
		now = g.Until
	}
}

// failing is a backend whose batches fail.
type failing struct{ *dryRun }

var errFailing = errors.New("it fails")

func (failing) Set([]guard.Lease) error { return errFailing }

func TestFailedBatchKeepsWhatWas(t *testing.T) {
	f, now := dry(t, 10), time.Now()
	lab.Must(t, f.Load(t.Context(), 0, now))
	g := Grant{
		Client: "alice", Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(time.Minute),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
	}
	lab.Must(t, f.Grant(t.Context(), []Grant{g}, now))
	f.backend = failing{newDryRun(f.log)}
	longer, other := g, g
	longer.Until, other.Client = now.Add(time.Hour), "bob"
	if err := f.Grant(t.Context(), []Grant{longer, other}, now); !errors.Is(err, errFailing) {
		t.Fatalf("got %v, want %v", err, errFailing)
	}
	if _, err := f.Revoke(t.Context(), Match{}, now); !errors.Is(err, errFailing) {
		t.Fatalf("got %v, want %v", err, errFailing)
	}
	gs := f.Grants(now)
	if len(gs) != 1 || gs[0].Client != "alice" || !gs[0].Until.Equal(g.Until) || spare(f.ledger) != 9 {
		t.Errorf("got %v and %d free slots, want alice's as it was and 9", gs, spare(f.ledger))
	}
}
