package firewall

import (
	"net/netip"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sallyport/spa"
)

// redirect leads tcp/2222 of the gateway to its tcp/22, as another tool does.
func (s *site) redirect() {
	s.Helper()
	s.another(func(c *nft.Conn) {
		// meta l4proto tcp th dport 2222 redirect to :22
		chainOf(c, nft.ChainTypeNAT, nft.ChainHookPrerouting, -100, rule(
			l4proto(spa.TCP), exprs{
				port(first, dport), equal([]byte{2222 >> 8, 2222 & 0xff}),
				&expr.Immediate{Register: 1, Data: []byte{0, 22}}, &expr.Redir{RegisterProtoMin: 1},
			})...)
	})
}

// TestPortThatLeadsToAGuardedOne: behind the rewriting it takes a grant for the guarded port, or, if
// the port that leads there is guarded too, one for that. check says so.
func TestPortThatLeadsToAGuardedOne(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, own := range []string{"", "tcp/2222"} {
			for _, f := range bothFamilies {
				t.Run(f.name+" "+own, func(t *testing.T) {
					s := k.newSite(t, func(c *Config) {
						if own != "" {
							guard(own)(c)
						}
					})
					s.redirect()
					s.connect(f.stranger, f.gateway, "2222")
					s.open()
					s.load(0)
					s.dark(f.stranger, f.gateway, "2222")
					g := sshGrant("alice", f.alice, long)
					if own != "" {
						g.Ports[0] = ports(own)
					}
					s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
					s.connect(f.alice, f.gateway, "2222")
					s.dark(f.stranger, f.gateway, "2222")
					if own != "" {
						s.dark(f.alice, f.gateway, "22")
					}
				})
			}
		}
	})
}

// TestPublishedTarget: a port that leads to a target is as shut as the target, and open to those
// who have a grant for that.
func TestPublishedTarget(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range bothFamilies {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, func(c *Config) {
					c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: []spa.Ports{ports("tcp/22")}}}
				})
				s.inner()
				s.publish(f)
				s.connect(f.stranger, f.gateway, "2222")
				s.open()
				s.load(0)
				s.dark(f.stranger, f.gateway, "2222")
				s.must(s.Grant(t.Context(), []Grant{s.toInner("alice", f.alice, f)}, time.Now()))
				s.connect(f.alice, f.gateway, "2222")
				s.dark(f.stranger, f.gateway, "2222")
			})
		}
	})
}
