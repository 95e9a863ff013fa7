package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
)

// TestOnceBesideOtherPorts: ports at which a grant admits one flow change nothing for the others.
func TestOnceBesideOtherPorts(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, both(once("tcp/22"), guarding("tcp/2300")))
		s.serve(":2300")
		s.grantPorts("both", f.alice, long, "tcp/22", "tcp/2300")
		for range 2 {
			s.connect(f.alice, f.gateway, "2300")
		}
		s.connect(f.alice, f.gateway, "22")
		s.dark(f.alice, f.gateway, "22")
	})
}

// TestOnceUnanswered: a flow that the server has not answered ends with its grant.
func TestOnceUnanswered(t *testing.T) {
	someOnce(t, func(t *testing.T, fl *flows) {
		if fl.proto != service.UDP {
			return
		}
		fl.knock("alice")
		v, err := fl.begin()
		if err != nil || !v.arrives() {
			t.Fatalf("got %v, want a flow", err)
		}
		fl.revoke(Match{})
		if v.arrives() {
			t.Error("a datagram of a flow without an answer arrived after its grant")
		}
	})
}

// TestOnceGapSession: sessions from a time without the guard take no grant, and are not let in by one.
func TestOnceGapSession(t *testing.T) {
	someOnce(t, func(t *testing.T, fl *flows) {
		fl.flushRuleset()
		fl.another(func(c *nft.Conn) { // connection tracking stays enabled
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
		})
		gap := fl.gets1()
		fl.must(fl.gw.Do(func() error { return fl.putBack(time.Now()) }))
		fl.knock("alice")
		fl.knock("bob")
		dead := func() {
			t.Helper()
			if gap.tcp != nil {
				fl.dead(gap.tcp)
				return
			}
			if gap.arrives() {
				t.Error("a datagram of the gap's session arrived")
			}
			fl.server.WriteTo([]byte("hello"), gap.udp.LocalAddr()) // dropped, which is an error
			if fl.gets(gap.udp, silence) {
				t.Error("an answer in the gap's session left")
			}
		}
		if gap.tcp != nil { // a datagram is as good as any other: it takes the grant
			dead()
		}
		fl.gets1()
		fl.gets1()
		dead()
		fl.shut()
	})
}

// TestOnceAtTargetUDP: what another table's DNAT leads to a target takes the grant too, and no datagram of a second
// flow arrives there.
func TestOnceAtTargetUDP(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		inner := netip.MustParseAddr(innerAddr[f.name])
		s := guarded(t, both(once("udp/5000"), func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{inner}, Ports: rangesOf("udp/5000")}}
		}))
		server := s.udp(s.behind(), "[::]:5000")
		s.nft(fmt.Sprintf("table inet leads { chain c { type nat hook prerouting priority -100; udp dport 5001 "+
			"dnat %s to %s; }; }",
			map[string]string{"IPv4": "ip", "IPv6": "ip6"}[f.name], netip.AddrPortFrom(inner, 5000)))
		arrives := func(to, port string) bool {
			t.Helper()
			s.send(s.udp(s.client, net.JoinHostPort(f.alice, "0")), net.JoinHostPort(to, port))
			return s.gets(server, 2*silence)
		}
		for _, way := range []struct{ to, port string }{{inner.String(), "5000"}, {f.gateway, "5001"}} {
			g := s.toInner("alice", f.alice, f)
			g.Ports = rangesOf("udp/5000")
			s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
			if !arrives(way.to, way.port) {
				t.Errorf("a datagram to port %s was lost", way.port)
			}
			if arrives(inner.String(), "5000") || arrives(f.gateway, "5001") {
				t.Errorf("a second flow got in, after one to port %s", way.port)
			}
		}
	})
}
