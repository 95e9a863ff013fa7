package firewall

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/ledger"
	"sallyport/spa/lab"
)

// killedThen starts a daemon with a changed configuration after the one before was killed.
func (s *site) killedThen(change func(*Config)) {
	s.Helper()
	change(&s.config)
	s.open()
	s.load(0)
}

// TestForwardMoves: a grant is for the place that its port led to. After a change, by a reload or while the daemon was
// killed, it does not lead to another one, nor to the gateway's own program, and other grants stay.
func TestForwardMoves(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		w := newForwarded(t, k, forwarding{}, f)
		other := w.listens(w.gw, ":2301")
		for name, change := range map[string]func(*Config){
			"to another port": func(c *Config) { c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, Port: 2301}} },
			"nowhere":         func(c *Config) { c.Forwards = nil },
			"to a machine": func(c *Config) {
				c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, To: []netip.AddrPort{
					netip.AddrPortFrom(netip.MustParseAddr(innerAddr[f.name]), 2301)}}}
			},
		} {
			for way, becomes := range map[string]func(func(*Config)){"reload": w.becomes, "start": w.killedThen} {
				w.knocks(w.alice)
				w.grant("alice", w.alice, long)
				w.talks(w.alice)
				before := w.config
				becomes(change)
				w.dark(w.alice, w.gateway, "2222")
				if gs := w.Grants(time.Now()); len(gs) != 1 || gs[0].Service != "ssh" {
					t.Errorf("%s by a %s: %v are live, want the grant for another port", name, way, gs)
				}
				becomes(func(c *Config) { c.Forwards = before.Forwards })
				w.dark(w.alice, w.gateway, "2222")
			}
		}
		for _, becomes := range []func(func(*Config)){w.becomes, w.killedThen} {
			w.knocks(w.alice)
			becomes(func(c *Config) {
				c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, Port: 2300, Masquerade: !c.Forwards[0].Masquerade}}
			})
			w.talks(w.alice)
		}
		w.becomes(func(c *Config) { c.Forwards = []Forward{{Ports: c.Forwards[0].Ports, Port: 2301}} })
		w.knocks(w.alice)
		w.killedThen(func(*Config) {})
		w.talksBy(w.alice, other)
	})
}

// TestLedgerWithoutPlaces: of a grant that an earlier version recorded without a place, a start keeps the ports that
// lead nowhere else.
func TestLedgerWithoutPlaces(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := Config{Backend: BackendDryRun, Guarded: rangesOf("tcp/22-24"), knobs: knobs{slots: 16}}
	l := lab.Value(ledger.Open(dir, thisBoot, c.slots))(t)
	h := &ledger.Holding{Client: "alice", Service: "some", Source: netip.MustParseAddr("192.0.2.2"), Ports: c.Guarded,
		Until: now.Add(long)}
	lab.Must(t, l.Write(h, now))
	lab.Must(t, l.Close())
	ports := func(c Config) (held []string) {
		for _, g := range startOn(t, dir, c, now).Grants(now) {
			for _, p := range g.Ports {
				held = append(held, p.String())
			}
		}
		return held
	}
	if got := ports(c); len(got) != 1 || got[0] != "tcp/22-24" {
		t.Errorf("without forwards: %v is left, want all of it", got)
	}
	c.Forwards = []Forward{{Ports: rangesOf("tcp/23"), Port: 2300}}
	if got := ports(c); len(got) != 2 || got[0] != "tcp/22" || got[1] != "tcp/24" {
		t.Errorf("with tcp/23 forwarded: %v is left, want the other ports", got)
	}
}

// TestStartOnAFullLedger: a start that has no room for what is left of grants ends them, and does not fail.
func TestStartOnAFullLedger(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := Config{Backend: BackendDryRun, Guarded: rangesOf("tcp/22-24"), knobs: knobs{slots: 3}}
	s := startOn(t, dir, c, now)
	for _, client := range []string{"alice", "bob", "carol"} {
		g := portGrant(client, now.Add(long), "tcp/22-24")
		if client == "carol" {
			g.Ports = rangesOf("tcp/22")
		}
		lab.Must(t, s.Grant(t.Context(), []Grant{g}, now))
	}
	lab.Must(t, s.Close())
	c.Forwards = []Forward{{Ports: rangesOf("tcp/23"), Port: 2300}}
	s = startOn(t, dir, c, now)
	if gs := s.Grants(now); len(gs) != 1 || gs[0].Client != "carol" || len(s.disk()) != 1 || spare(s.ledger) != 2 {
		t.Errorf("%v are left, and %d slots are free", gs, spare(s.ledger))
	}
}
