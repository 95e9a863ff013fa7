package firewall

import (
	"net"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/spa/lab"
)

// TestUDPConfirms: a new flow does; one that was there does not.
func TestUDPConfirms(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, fresh := range []bool{true, false} {
			t.Run(map[bool]string{true: "new", false: "old"}[fresh], func(t *testing.T) {
				s := k.newSite(t, guard("udp/5000"))
				server, alice := s.udp(s.gw, "192.0.2.1:5000"), s.udp(s.client, "192.0.2.2:4000")
				s.open()
				s.load(0) // so that the next load is not a first one, which would carry the flow
				s.flushRuleset()
				s.another(func(c *nft.Conn) {
					chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, isReply()...)
				})
				if !fresh {
					s.exchange(alice, server)
				}
				s.load(time.Second)
				n := s.counts("is confirmed")
				ended := s.watch()
				g := sshGrant("alice", "192.0.2.2", time.Minute)
				g.Ports[0] = ports("udp/5000")
				s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
				s.exchange(alice, server)
				if fresh {
					lab.Eventually(t, "the confirmation", func() bool { return n.Load() == 1 })
					return
				}
				s.ends(ended, ErrUnconfirmed)
			})
		}
	})
}

// exchange is a question and its answer.
func (s *site) exchange(client, server *net.UDPConn) {
	s.Helper()
	s.send(client, server.LocalAddr().String())
	if !s.gets(server, soon) {
		s.Fatal("the question was lost")
	}
	s.send(server, client.LocalAddr().String())
	if !s.gets(client, soon) {
		s.Fatal("the answer was lost")
	}
}
