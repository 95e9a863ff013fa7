package firewall

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// Two networks on one interface of the gateway, which routes between them: a listed machine is in one, its peer in the
// other. The interface, br0, is a bridge, or leads to a switch.

// bridgePeer is the peer's address.
var bridgePeer = map[string]string{"IPv4": "203.0.113.5", "IPv6": "2001:db8:2::5"}

// onABridge makes the hosts, without a guard.
func (k kind) onABridge(t *testing.T, switched bool) (s *site, inner, peer *lab.Host) {
	t.Helper()
	s = k.newSite(t, func(c *Config) {
		c.size = 10
		for _, a := range []string{innerAddr["IPv4"], innerAddr["IPv6"], "192.0.2.2", "2001:db8::2"} {
			c.Targets = append(c.Targets, Target{Addresses: []netip.Addr{netip.MustParseAddr(a)},
				Ports: rangesOf("tcp/22 tcp/2200 udp/2200")})
		}
	})
	hosts := lab.New(s, "inner", "peer")
	inner, peer = hosts[0], hosts[1]
	at, ports := s.gw, []string{"p1", "p2"}
	if switched {
		at, ports = lab.New(s, "switch")[0], append(ports, "p3")
		s.must(lab.Link(at, "p3", s.gw, "br0"))
	}
	s.must(lab.Link(at, "p1", inner, "eth0"))
	s.must(lab.Link(at, "p2", peer, "eth0"))
	s.must(at.Bridge("br0", ports...))
	for _, a := range []string{"198.51.100.1/24", "203.0.113.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64"} {
		s.must(s.gw.AddAddr("br0", a))
	}
	for _, m := range []struct {
		host     *lab.Host
		addr, by string
	}{
		{inner, "198.51.100.5/24", "198.51.100.1"}, {inner, "2001:db8:1::5/64", "2001:db8:1::1"},
		{peer, "203.0.113.5/24", "203.0.113.1"}, {peer, "2001:db8:2::5/64", "2001:db8:2::1"},
	} {
		s.must(m.host.AddAddr("eth0", m.addr))
		s.must(m.host.Route("default", m.by))
	}
	s.must(s.client.Route("default", "192.0.2.1"))
	s.must(s.client.Route("default", "2001:db8::1"))
	s.must(s.gw.Forward())
	// Redirects would tell the machines how to do without the gateway.
	for _, dev := range []string{"all", "br0"} {
		s.must(s.gw.Sysctl("net.ipv4.conf."+dev+".send_redirects", "0"))
	}
	for _, h := range []*lab.Host{inner, peer} {
		s.must(h.Sysctl("net.ipv6.conf.eth0.accept_redirects", "0"))
	}
	s.nft("table inet tracks { chain c { type filter hook forward priority 0; ct state established accept; }; }")
	return s, inner, peer
}

// TestTargetOnABridge: what a listed machine begins itself passes from a bridge to another link and from another link
// to a bridge, but not back to the bridge, where it could be forged. A session there goes on over the first load,
// although the server speaks first.
func TestTargetOnABridge(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s, inner, peer := k.onABridge(t, false)
		for _, h := range []*lab.Host{s.client, peer} {
			echo := lab.Value(lab.EchoServer(h, ":7000"))(s)
			defer echo.Close()
		}
		accept := s.listenOn(inner, ":22")
		old := lab.Value(lab.Dial(peer, "", net.JoinHostPort(innerAddr[f.name], "22"), lab.Patience))(s)
		defer old.Close()
		v := session{old, accept(old)}
		s.open()
		s.load(0)
		s.speaks(v.server, v.client)
		for _, way := range []struct {
			name     string
			from     *lab.Host
			src, dst string
			passes   bool
		}{
			{"from a bridge to a link", inner, innerAddr[f.name], f.alice, true},
			{"from a link to a bridge", s.client, f.alice, bridgePeer[f.name], true},
			{"from a bridge to the same bridge", inner, innerAddr[f.name], bridgePeer[f.name], false},
		} {
			within := map[bool]time.Duration{true: lab.Patience, false: silence}[way.passes]
			c, err := lab.Dial(way.from, net.JoinHostPort(way.src, "2200"), net.JoinHostPort(way.dst, "7000"), within)
			if (err == nil) != way.passes {
				t.Errorf("%s: got %v, passes: want %v", way.name, err, way.passes)
			}
			if err == nil {
				s.must(c.(*net.TCPConn).SetLinger(0))
				c.Close()
			}
		}
	})
}

// TestForgedOnABridge: a stranger on the bridge of a listed machine, who claims to be that machine and to begin a flow
// with himself, gets nothing through to it: not as a reply, and not by another shape. A grant lets him in.
func TestForgedOnABridge(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for name, at := range map[string]struct {
			switched bool
			filtered string // whether the bridge's own packets pass through the guard
		}{"bridge": {false, "0"}, "bridge with br_netfilter": {false, "1"}, "switch": {true, "0"}} {
			t.Run(name, func(t *testing.T) {
				s, inner, peer := k.onABridge(t, at.switched)
				for _, name := range []string{"iptables", "ip6tables"} {
					if err := s.gw.Sysctl("net.bridge.bridge-nf-call-"+name, at.filtered); err != nil && at.filtered == "1" {
						lab.Skip(t, "needs a kernel with br_netfilter")
					}
				}
				s.mute(peer) // its kernel knows nothing of what is sent in its name
				s.open()
				s.load(0)
				s.forgesOnABridge(f, inner, peer)
			})
		}
	})
}

func (s *site) forgesOnABridge(f sides, inner, peer *lab.Host) {
	s.Helper()
	me, target := netip.MustParseAddr(bridgePeer[f.name]), netip.AddrPortFrom(netip.MustParseAddr(innerAddr[f.name]), 2200)
	send := func(sh shape, from, to netip.AddrPort) {
		s.Helper()
		p := packet{shape: sh, from: from, to: to, seq: 1000}
		for _, b := range p.bytes() {
			s.frameBy(peer, "eth0", "br0", b)
		}
	}
	arrives := func(sh shape, from netip.AddrPort) bool {
		s.Helper()
		at := map[string]int{"IPv4": 20, "IPv6": 40}[f.name]
		return s.arrives(inner, func(b []byte) bool {
			return len(b) >= at+4 && binary.BigEndian.Uint16(b[at:]) == from.Port() && binary.BigEndian.Uint16(b[at+2:]) == 2200
		}, func() { send(sh, from, target) })
	}
	follows := func(begins, then shape, from netip.AddrPort) {
		s.Helper()
		send(begins, target, from)
		if arrives(then, from) {
			s.Errorf("%v of %v after a forged %v arrives", then, from, begins)
		}
	}
	for i, then := range []shape{shapeSYN, shapeSYNACK, shapeACK, shapeRST, shapeUDP} {
		begins := map[bool]shape{true: shapeUDP, false: shapeSYN}[then == shapeUDP]
		follows(begins, then, netip.AddrPortFrom(me, uint16(4000+i)))
	}
	more := me.Next()
	for range 20 { // more destinations than the guard can remember
		more = more.Next()
		send(shapeUDP, target, netip.AddrPortFrom(more, 4000))
	}
	follows(shapeUDP, shapeUDP, netip.AddrPortFrom(me.Next(), 4000))
	now := time.Now()
	s.must(s.Grant(s.Context(), []Grant{{Client: "eve", Service: "s", Source: me, To: []netip.Addr{target.Addr()},
		Ports: rangesOf("udp/2200 tcp/2200"), Until: now.Add(long)}}, now))
	for _, sh := range []shape{shapeUDP, shapeSYN} {
		if !arrives(sh, netip.AddrPortFrom(me, 5000)) {
			s.Errorf("%v with a grant does not arrive", sh)
		}
	}
}
