package server

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys/service"
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
