package server

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestShown: a grant that the firewall keeps in parts is shown as one. Grants from before and after a service got
// another port are separate, because each has its own end.
func TestShown(t *testing.T) {
	port := func(n uint16) service.Ports { return service.Ports{Proto: service.TCP, Low: n, High: n} }
	grant := func(until time.Time, ports ...service.Ports) firewall.Grant {
		return firewall.Grant{Client: "alice", Service: "web", Source: netip.MustParseAddr("192.0.2.2"),
			Ports: ports, Until: until}
	}
	of := func(g firewall.Grant, change func(g *firewall.Grant)) firewall.Grant {
		change(&g)
		return g
	}
	end := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		held []firewall.Grant
		want [][]string
	}{
		"parts": {[]firewall.Grant{grant(end, port(1), port(2)), grant(end.Add(time.Microsecond), port(3))},
			[][]string{{"tcp/1", "tcp/2", "tcp/3"}}},
		"other ports since": {[]firewall.Grant{grant(end, port(1)), grant(end.Add(time.Minute), port(1), port(2))},
			[][]string{{"tcp/1"}, {"tcp/1", "tcp/2"}}},
		"another port instead": {[]firewall.Grant{grant(end, port(1)), grant(end.Add(time.Minute), port(2))},
			[][]string{{"tcp/1"}, {"tcp/2"}}},
		"of another client": {[]firewall.Grant{grant(end, port(1)),
			of(grant(end, port(2)), func(g *firewall.Grant) { g.Client = "bob" })}, [][]string{{"tcp/1"}, {"tcp/2"}}},
		"of another service": {[]firewall.Grant{grant(end, port(1)),
			of(grant(end, port(2)), func(g *firewall.Grant) { g.Service = "ssh" })}, [][]string{{"tcp/1"}, {"tcp/2"}}},
		"at another address": {[]firewall.Grant{grant(end, port(1)),
			of(grant(end, port(2)), func(g *firewall.Grant) { g.Source = g.Source.Next() })}, [][]string{{"tcp/1"}, {"tcp/2"}}},
		"no port is said twice": {[]firewall.Grant{grant(end, port(1)), grant(end, port(1), port(2))},
			[][]string{{"tcp/1"}, {"tcp/1", "tcp/2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got [][]string
			for i, g := range shown(c.held) {
				got = append(got, g.Ports)
				if i > 0 && !g.Until.Equal(c.held[i].Until) {
					t.Errorf("the second ends at %v, want %v", g.Until, c.held[i].Until)
				}
			}
			if !slices.EqualFunc(got, c.want, slices.Equal) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestCounted: a status counts the grants that are listed, whatever is granted, and at any time.
func TestCounted(t *testing.T) {
	s, _ := newLine(t)
	now := time.Now()
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	counted, joined := 0, 0
	for range 200 {
		g := firewall.Grant{Client: pick("alice", "bob"), Service: pick("ssh", "web", "mail"),
			Source: netip.MustParseAddr(pick("192.0.2.2", "192.0.2.3", "2001:db8::2", "fe80::2%1", "fe80::2%2")),
			Until:  now.Add(time.Duration(1+random.IntN(4)) * time.Minute)}
		for range 1 + random.IntN(10) {
			port := uint16(1 + random.IntN(20))
			g.Ports = append(g.Ports, service.Ports{Proto: service.TCP, Low: port, High: port})
		}
		if random.IntN(3) == 0 && g.Source.Is4() {
			g.To = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}[random.IntN(2):]
		}
		lab.Must(t, s.firewall.Grant(t.Context(), []firewall.Grant{g}, now))
		for minute := range 6 {
			at := now.Add(time.Duration(minute) * time.Minute)
			held := s.firewall.Grants(at)
			if got, want := s.firewall.Count(at), len(shown(held)); got != want {
				t.Fatalf("%d counted, %d listed of %v", got, want, held)
			}
			counted, joined = max(counted, len(shown(held))), max(joined, len(held)-len(shown(held)))
		}
	}
	if counted < 20 || joined < 20 {
		t.Errorf("at most %d grants, and %d of them in parts: too few to mean anything", counted, joined)
	}
}
