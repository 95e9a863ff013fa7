package firewall

import (
	"testing"
	"time"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// TestKilledTrialOfCutPorts: the kernel alone lets go of ports, too, whose sessions end with
// the grant, and of a session there that the first load carried for a while.
func TestKilledTrialOfCutPorts(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, cutting("tcp/2300"))
		accept := s.listen(":2300")
		before := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
		s.open()
		s.load(time.Second)
		s.speaks(before.server, before.client) // to connection tracking it is the server's now
		s.dark("192.0.2.3", "192.0.2.1", "2300")
		s.endCarrying()
		s.die()
		lab.Eventually(t, "the guard's end", func() bool { return s.isOpen("192.0.2.3", "192.0.2.1", "2300") })
		s.mutual(before, true)
	})
}

// endCarrying makes the guard forget the flows that it carries, as it does in time.
func (s *site) endCarrying() {
	s.Helper()
	switch b := s.backend.(type) {
	case *nftables:
		s.another(func(c *nft.Conn) { c.FlushSet(b.objects.carried4) })
	case *ipt:
		if b.sets != nil {
			s.must(b.sets.replace(ipset{name: "spa-flows4", kind: hashIPPortIP, family: unix.AF_INET, max: b.cfg.size + 1}, nil))
		}
	}
}

// TestConfirmedPortsStayCut: what ends with the trial does not end where that was confirmed.
func TestConfirmedPortsStayCut(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, cutting("tcp/2300"))
		accept := s.listen(":2300")
		s.open()
		s.load(2 * time.Second)
		over := time.Now().Add(2 * time.Second)
		s.grantPorts("alice", "192.0.2.2", time.Minute, "tcp/2300")
		v := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
		s.watch()
		lab.Eventually(t, "the confirmation", func() bool { return s.Condition().Trial.IsZero() })
		lab.Eventually(t, "the end of the time for it", func() bool { return time.Now().After(over) })
		s.mutual(v, true)
		s.revoke(Match{})
		s.mutual(v, false)
	})
}
