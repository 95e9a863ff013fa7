package firewall

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/iptables"
	"sallyport/spa/lab"
)

// TestCutOverAFlush: a session by a port that another tool leads to a machine or to this host ends with its grant, and
// no other does, whenever the grant ends and another tool flushes both.
func TestCutOverAFlush(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, to := range []string{innerAddr[f.name], f.gateway} {
			for _, ends := range []string{"before the flush", "while the guard is away", "after the flush"} {
				t.Run("to "+to+" "+ends, func(t *testing.T) { k.cutOverAFlush(t, f, netip.MustParseAddr(to), ends) })
			}
		}
	})
}

func (k kind) cutOverAFlush(t *testing.T, f sides, to netip.Addr, ends string) {
	inner := to.String() == innerAddr[f.name]
	s := k.newSite(t, func(c *Config) {
		c.Guarded, c.Cut = rangesOf("tcp/2200"), rangesOf("tcp/2200")
		if inner {
			c.Targets = []Target{{Addresses: []netip.Addr{to}, Ports: rangesOf("tcp/2200")}}
		}
	})
	at := s.gw
	if inner {
		at = s.behind()
	}
	accept := s.listenOn(at, ":2200")
	publish := func() { s.leadTo(f, netip.AddrPortFrom(to, 2200)) }
	publish()
	s.open()
	s.load(0)
	var gs []Grant
	for client, from := range map[string]string{"alice": f.alice, "bob": f.stranger} {
		g := sshGrant(client, from, long)
		g.Ports = rangesOf("tcp/2200")
		if inner {
			g.To = []netip.Addr{to}
		}
		gs = append(gs, g)
	}
	s.must(s.Grant(s.Context(), gs, time.Now()))
	mine, theirs := s.talk(accept, f.alice, f.gateway, "2222"), s.talk(accept, f.stranger, f.gateway, "2222")
	end := func(at string) {
		if at == ends {
			s.revoke(Match{Client: "alice"})
		}
	}
	end("before the flush")
	s.flushRuleset()
	if b, ok := s.backend.(*iptables.Backend); ok { // its sets stay
		s.must(b.Sets.Replace(b.AddressSet(iptables.SetMet, ipset.HashIPPort, f.name == "IPv6"), nil))
	}
	publish()
	end("while the guard is away")
	s.load(0)
	end("after the flush")
	for range 3 {
		s.mutual(mine, false)
	}
	s.mutual(theirs, true)
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen(f.alice, f.gateway, "2222") })
	if !slices.ContainsFunc(s.Grants(time.Now()), func(g Grant) bool { return g.Client == "bob" }) {
		t.Error("the other grant is gone")
	}
}
