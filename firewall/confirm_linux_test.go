package firewall

import (
	"net"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// TestUDPConfirms: a new flow confirms the guard; an existing one does not.
func TestUDPConfirms(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, fresh := range []bool{true, false} {
			t.Run(map[bool]string{true: "new", false: "old"}[fresh], func(t *testing.T) {
				inTime(t, time.Second, func(within time.Duration) bool { return k.confirmsByUDP(t, fresh, within) })
			})
		}
	})
}

func (k kind) confirmsByUDP(t *testing.T, fresh bool, within time.Duration) (early bool) {
	s := k.newSite(t, guarding("udp/5000"))
	server, alice := s.udp(s.gw, "192.0.2.1:5000"), s.udp(s.client, "192.0.2.2:4000")
	s.open()
	s.load(0) // so that the next load is not a first load, which would carry the flow
	s.flushRuleset()
	s.another(func(c *nft.Conn) {
		chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
	})
	if !fresh {
		s.exchange(alice, server)
	}
	v := s.try(within)
	n := s.counts("is confirmed")
	ended := s.watch()
	g := sshGrant("alice", "192.0.2.2", long)
	g.Ports[0] = ports("udp/5000")
	if !v.gives(g) {
		return false
	}
	s.exchange(alice, server)
	if fresh {
		return v.confirms(ended, n)
	}
	early = time.Now().Before(v.until)
	s.ends(ended, ErrUnconfirmed)
	return early
}

// exchange is a question and its answer.
func (s *site) exchange(client, server *net.UDPConn) {
	s.Helper()
	s.send(client, server.LocalAddr().String())
	if !s.gets(server, lab.Patience) {
		s.Fatal("the question was lost")
	}
	s.send(server, client.LocalAddr().String())
	if !s.gets(client, lab.Patience) {
		s.Fatal("the answer was lost")
	}
}

// TestStrangerConfirmsNothing: a stranger's datagram does not confirm the guard, while another client has a grant.
func TestStrangerConfirmsNothing(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, guarding("udp/5000"))
		server := s.udp(s.gw, "192.0.2.1:5000")
		s.open()
		s.load(long)
		s.grantPorts("one", "192.0.2.2", long, "udp/5000")
		s.send(s.udp(s.client, "192.0.2.3:0"), "192.0.2.1:5000")
		if s.gets(server, silence) || lab.Value(s.backend.Entered())(t) {
			t.Error("a stranger's datagram arrives, or confirms the guard")
		}
		s.send(s.udp(s.client, "192.0.2.2:0"), "192.0.2.1:5000")
		if !s.gets(server, lab.Patience) || !lab.Value(s.backend.Entered())(t) {
			t.Error("a client's datagram is lost, or does not confirm the guard")
		}
	})
}
