package firewall

import (
	"testing"
	"time"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// TestKilledTrialOfCutPorts: the kernel alone also opens ports whose sessions end with the grant, and releases a
// session there that the first load carried for a while.
func TestKilledTrialOfCutPorts(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		inTime(t, time.Second, func(within time.Duration) bool {
			s := k.newSite(t, cutting("tcp/2300"))
			accept := s.listen(":2300")
			before := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
			s.open()
			v := s.try(within)
			s.speaks(before.server, before.client) // for connection tracking it is now the server's
			early := v.stands("192.0.2.3", "192.0.2.1", "2300")
			s.endCarrying()
			s.die()
			lab.Eventually(t, "the guard's end", func() bool { return s.isOpen("192.0.2.3", "192.0.2.1", "2300") })
			s.mutual(before, true)
			return early
		})
	})
}

// endCarrying makes the guard forget the flows that it carries, as it does in time.
func (s *site) endCarrying() {
	s.Helper()
	switch b := s.backend.(type) {
	case *nftables.Backend:
		s.another(func(c *nft.Conn) { c.FlushSet(b.Objects.Carried4) })
	case *iptables.Backend:
		s.must(b.Sets.Replace(ipset.Set{Name: "spa-flows4", Kind: ipset.HashIPPortIP, Family: unix.AF_INET,
			Max: b.Spec.Size + 1}, nil))
	}
}

// TestConfirmedPortsStayCut: elements that would end with the trial stay once the guard is confirmed.
func TestConfirmedPortsStayCut(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		inTime(t, time.Second, func(within time.Duration) bool {
			s := k.newSite(t, cutting("tcp/2300"))
			accept := s.listen(":2300")
			s.open()
			trial := s.try(within)
			s.grantPorts("alice", "192.0.2.2", long, "tcp/2300")
			v := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
			n := s.counts("is confirmed")
			ended := s.watch()
			if !trial.confirms(ended, n) {
				return false
			}
			trial.passes(ended)
			s.mutual(v, true)
			s.revoke(Match{})
			s.mutual(v, false)
			return true
		})
	})
}
