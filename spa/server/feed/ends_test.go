package feed

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall"
)

// TestEndsAreTold: watchers see the end of an extended grant at its later end, and see no second end of a grant that
// was ended early.
func TestEndsAreTold(t *testing.T) {
	now := time.Now()
	grant := func(client string, d time.Duration) firewall.Grant {
		return firewall.Grant{Client: client, Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(d)}
	}
	e := newEnds()
	e.expect([]firewall.Grant{grant("alice", time.Second), grant("bob", time.Second), grant("carol", time.Second)})
	e.expect([]firewall.Grant{grant("alice", 3*time.Second)})
	e.expect([]firewall.Grant{grant("alice", 2*time.Second)}) // a longer grant is not shortened
	e.forget(grant("bob", 0))
	over, next := e.passed(now.Add(time.Second))
	if len(over) != 1 || over[0].client != "carol" || !next.Equal(now.Add(3*time.Second)) {
		t.Errorf("after a second: %v, the next at %v", over, next.Sub(now))
	}
	over, next = e.passed(now.Add(3 * time.Second))
	if len(over) != 1 || over[0].client != "alice" || !next.IsZero() {
		t.Errorf("after three: %v, the next at %v", over, next)
	}
	if len(e.at)+len(e.due) != 0 {
		t.Errorf("when all have ended %v and %v are remembered", e.at, e.due)
	}
}
