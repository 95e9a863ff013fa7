package firewall

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// started is a daemon on a ledger, with a clock that stands still.
type started struct {
	*Firewall
	kernel *recording
	disk   func() []*ledger.Holding
}

// startOn starts a daemon with a configuration. An earlier one on the directory was killed.
func startOn(t *testing.T, dir string, c Config, now time.Time) started {
	t.Helper()
	f := dry(t, c.slots)
	open := func() *ledger.Ledger { return lab.Value(ledger.Open(dir, thisBoot, c.slots))(t) }
	f.cfg, f.ledger = c, open()
	f.cfg.setDefaults()
	f.cfg.Now = func() time.Time { return now }
	s := started{f, record(f), func() []*ledger.Holding {
		l := open()
		defer l.Close()
		return lab.Value(l.Read(now))(t)
	}}
	lab.Must(t, f.Load(t.Context(), 0, now))
	return s
}

// held returns what a daemon has of each grant in memory, on the disk and in the kernel.
func (s started) held(t *testing.T) map[string]int {
	t.Helper()
	all := make(map[string]int)
	memory := slices.Collect(s.Firewall.held.All())
	for where, hs := range map[string][]*ledger.Holding{"memory": memory, "disk": s.disk()} {
		for _, h := range hs {
			h.Each(func(e guard.Element) {
				all[fmt.Sprintln(where, h.Client, h.Service, e, h.Led, h.Once, h.Until.Sub(s.cfg.Now()).Round(time.Minute))]++
			})
		}
	}
	for e, l := range s.kernel.lasts {
		all[fmt.Sprintln("kernel", e, l.Round(time.Minute))]++
	}
	return all
}

// lawfulConfig makes a configuration at random: what is guarded, what leads where, what admits one flow, whom Keep
// keeps.
func lawfulConfig(r *rand.Rand) Config {
	for {
		c := Config{Backend: BackendDryRun, knobs: knobs{slots: pick(r, []int{16, 64})}}
		for range 1 + r.IntN(4) {
			low := uint16(20 + r.IntN(8))
			c.Guarded = append(c.Guarded, service.Ports{Proto: pick(r, []service.Proto{service.TCP, service.UDP}), Low: low,
				High: low + uint16(r.IntN(4))})
		}
		single := func() []service.Ports {
			p := pick(r, c.Guarded)
			p.Low += uint16(r.IntN(int(p.High-p.Low) + 1))
			p.High = p.Low
			return []service.Ports{p}
		}
		four, six := netip.MustParseAddrPort("198.51.100.5:22"), netip.MustParseAddrPort("[2001:db8::5]:22")
		for range r.IntN(4) {
			c.Forwards = append(c.Forwards, pick(r, []Forward{{Port: 40}, {Port: 41}, {To: []netip.AddrPort{four}},
				{To: []netip.AddrPort{four, six}}, {To: []netip.AddrPort{six}},
				{To: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.6:22")}}}))
			last := &c.Forwards[len(c.Forwards)-1]
			last.Ports, last.Masquerade = single(), r.IntN(2) == 0
		}
		if r.IntN(2) == 0 {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.9")}, Ports: c.Guarded[:1]}}
		}
		if r.IntN(3) == 0 {
			c.Once = single()
		}
		if r.IntN(3) == 0 {
			c.Cut = c.Guarded[:1]
		}
		if no := pick(r, []string{"", "", "alice"}); no != "" {
			c.Keep = func(g Grant) bool { return g.Client != no }
		}
		checked := c
		if checked.setDefaults(); checked.check() == nil {
			return c
		}
	}
}

// changed changes one or two of a configuration's settings at random.
func changed(r *rand.Rand, c Config) Config {
	for {
		next, other := c, lawfulConfig(r)
		for range 1 + r.IntN(2) {
			switch r.IntN(6) {
			case 0:
				next.Guarded = other.Guarded
			case 1, 2:
				next.Forwards = other.Forwards
			case 3:
				next.Targets = other.Targets
			case 4:
				next.Once, next.Cut = other.Once, other.Cut
			default:
				next.Keep = other.Keep
			}
		}
		checked := next
		if checked.setDefaults(); checked.check() == nil {
			return next
		}
	}
}

// lawfulGrants makes grants at random for what a configuration guards.
func lawfulGrants(r *rand.Rand, c Config, now time.Time) []Grant {
	var gs []Grant
	for i := range 1 + r.IntN(4) {
		g := Grant{Client: pick(r, []string{"alice", "bob"}), Service: fmt.Sprint("s", i),
			Source: netip.MustParseAddr(pick(r, []string{"192.0.2.2", "2001:db8::2", "fe80::1%2"})),
			Until:  now.Add(time.Duration(1+r.IntN(60)) * time.Minute)}
		if len(c.Targets) > 0 && g.Source.Is4() && r.IntN(3) == 0 {
			g.To = c.Targets[0].Addresses
			g.Ports = c.Targets[0].Ports
		} else {
			g.Ports = slices.Clone(c.Guarded[:1+r.IntN(len(c.Guarded))])
		}
		gs = append(gs, g)
	}
	return gs
}

// mayStay is the law for a port of a grant in a few lines: it stays if it is guarded and leads where it led, and
// Keep keeps it.
func mayStay(was, is *Config, h *ledger.Holding, e guard.Element) bool {
	if !service.Covers(is.portsAt(h.To), e.Proto, e.Port) || is.Keep != nil && !is.Keep(grantOf(h)) {
		return false
	}
	to := func(c *Config) string {
		for _, f := range c.Forwards {
			if h.To.IsValid() || !service.Covers(f.Ports, e.Proto, e.Port) {
				continue
			}
			if f.Port != 0 {
				return fmt.Sprint(f.Port)
			}
			for _, a := range f.To {
				if a.Addr().Is4() == e.Source.Is4() {
					return a.String()
				}
			}
		}
		return ""
	}
	return to(was) == to(is)
}

// TestLawStart: after a kill and a start with other files, a grant is exactly what a reload of the same files would
// have left of it: in memory, on the disk and in the kernel. Nothing of it is for another port or place than before.
func TestLawStart(t *testing.T) {
	cases := 80
	if n, err := strconv.Atoi(os.Getenv("SALLYPORT_CASES")); err == nil && n > 0 {
		cases *= 20
	}
	whole, ended, shortened := 0, 0, 0
	for seed := range uint64(cases) {
		r, now := rand.New(rand.NewPCG(seed, 12)), time.Now()
		was := lawfulConfig(r)
		was.Keep = nil
		is, gs := changed(r, was), lawfulGrants(r, was, now)
		left := make([]map[string]int, 3)
		for i := range left {
			dir := t.TempDir()
			s := startOn(t, dir, was, now)
			lab.Must(t, s.Grant(t.Context(), gs, now))
			before := s.held(t)
			if i > 0 { // killed
				lab.Must(t, s.Close())
				s = startOn(t, dir, is, now)
			} else {
				lab.Must(t, s.Reconfigure(t.Context(), is, now))
			}
			if i == 2 { // killed again
				lab.Must(t, s.Close())
				s = startOn(t, dir, is, now)
			}
			left[i] = s.held(t)
			switch {
			case len(left[i]) == 0:
				ended++
			case len(left[i]) < len(before):
				shortened++
			default:
				whole++
			}
			for _, h := range slices.Concat(slices.Collect(s.Firewall.held.All()), s.disk()) {
				h.Each(func(e guard.Element) {
					if !mayStay(&was, &is, h, e) {
						t.Errorf("seed %d, way %d: %s has %v, which leads to %v", seed, i, h.Client, e, h.Led)
					}
				})
			}
			lab.Must(t, s.Close())
		}
		if !maps.Equal(left[0], left[1]) || !maps.Equal(left[1], left[2]) {
			t.Fatalf("seed %d: a reload left %v\na start %v\na second start %v", seed, left[0], left[1], left[2])
		}
	}
	t.Logf("of %d cases, in %d no grant ended, in %d some, in %d all", 3*cases, whole, shortened, ended)
	if whole*shortened*ended == 0 {
		t.Error("one of these never happened")
	}
}
