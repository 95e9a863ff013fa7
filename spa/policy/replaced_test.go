package policy

import (
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
)

// TestOfReplacedKey: a grant that may be from before the end of the previous key counts as of that key.
func TestOfReplacedKey(t *testing.T) {
	ended := now.Add(-time.Minute)
	for _, test := range []struct {
		previous time.Time // when it ends; zero: there is none
		max      time.Duration
		left     time.Duration // of the grant
		want     bool
	}{
		{time.Time{}, 0, time.Minute, false},
		{now.Add(1), 0, time.Minute, false},
		{now, 0, time.Minute, true},
		{now, 0, 10 * time.Minute, true},
		{ended, 0, 9*time.Minute + time.Second, true},
		{ended, 0, 9*time.Minute + clockStep + 1, false}, // a grant of the service is for ten minutes at most
		{ended, 5 * time.Minute, 4 * time.Minute, true},
		{ended, 5 * time.Minute, 4*time.Minute + clockStep + 1, false},
	} {
		c := &keys.Client{Name: "alice", Allow: []string{"ssh"}, MaxFor: test.max}
		if !test.previous.IsZero() {
			c.Previous = &keys.Previous{Until: test.previous}
		}
		g := firewall.Grant{Client: "alice", Service: "ssh", Source: here, Ports: ports(t, "tcp/22"),
			Until: now.Add(test.left)}
		if got := newPolicy(t, nil).OfReplacedKey(c, g, now); got != test.want {
			t.Errorf("%+v: got %v", test, got)
		}
	}
	if newPolicy(t, nil).OfReplacedKey(nil, firewall.Grant{}, now) {
		t.Error("of no client")
	}
}
