package policy

import (
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestAskedAgain: a client that asks again for less time than is left gets the time that is left: no grant is
// shortened.
func TestAskedAgain(t *testing.T) {
	both := append(ports(t, "tcp/22"), ports(t, "udp/60000-60010")...)
	part := func(p []service.Ports, left time.Duration) firewall.Grant {
		return firewall.Grant{Client: "alice", Service: "ssh", Source: here, Ports: p, Until: now.Add(left)}
	}
	for name, c := range map[string]struct {
		held held
		want time.Duration
	}{
		"nothing held": {nil, 30 * time.Second},
		"less is left": {held{part(both, 10*time.Second)}, 30 * time.Second},
		"more is left": {held{part(both, 9*time.Minute)}, 9 * time.Minute},
		"in parts": {held{part(both[:1], 9*time.Minute), part(both[1:], 8*time.Minute)},
			8 * time.Minute},
		"in parts, the first ends first": {held{part(both[:1], 8*time.Minute), part(both[1:], 9*time.Minute)},
			8 * time.Minute},
		"one part is over before": {held{part(both[:1], 9*time.Minute), part(both[1:], time.Second)},
			30 * time.Second},
		"a port has come since":    {held{part(both[:1], 9*time.Minute)}, 30 * time.Second},
		"held for another address": {elsewhere(held{part(both, 9*time.Minute)}), 30 * time.Second},
		"another service is for long": {held{{Client: "alice", Service: "web", Source: here, Ports: both,
			Until: now.Add(time.Hour)}}, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPolicy(t, c.held)
			p.services[1].Ports = both
			gs := lab.Value(p.Authorize(knock(keys.Client{Allow: []string{"ssh"}}, ssh), here, now, now))(t)
			if got := gs[0].Until.Sub(now); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
