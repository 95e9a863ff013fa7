package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func ports(s string) service.Ports {
	p, err := service.ParsePorts(s)
	if err != nil {
		panic(err)
	}
	return p
}

func guarding(add ...string) func(*Config) {
	return func(c *Config) {
		for _, p := range add {
			c.Guarded = append(c.Guarded, ports(p))
		}
	}
}

func TestGuardedUDP(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, f := range []struct{ name, from, stranger, to string }{
			{"IPv4", "192.0.2.2:0", "192.0.2.3:0", "192.0.2.1:5000"},
			{"IPv6", "[2001:db8::2]:0", "[2001:db8::3]:0", "[2001:db8::1]:5000"},
			{"broadcast", "192.0.2.2:0", "192.0.2.3:0", "192.0.2.255:5000"},
			{"IPv4 multicast", "192.0.2.2:0", "192.0.2.3:0", "224.0.0.1:5000"},
			{"IPv6 anycast", "[2001:db8::2]:0", "[2001:db8::3]:0", "[2001:db8::]:5000"},
			{"IPv6 multicast", "[2001:db8::2]:0", "[2001:db8::3]:0", "[ff02::1%vc]:5000"},
		} {
			t.Run(f.name, func(t *testing.T) {
				s := k.newSite(t, guarding("udp/5000-5001"))
				index, _, err := s.client.Interface("vc")
				s.must(err)
				to := netip.MustParseAddrPort(f.to)
				if to.Addr().Zone() != "" {
					to = netip.AddrPortFrom(to.Addr().WithZone(strconv.Itoa(index)), to.Port())
				}
				s.must(s.gw.Forward()) // a router answers at the subnet's anycast address
				var server *net.UDPConn
				if to.Addr().Is4() && to.Addr().IsMulticast() {
					server = s.joined(to)
				} else {
					server = s.udp(s.gw, "[::]:5000")
				}
				alice, stranger := s.udp(s.client, f.from), s.udp(s.client, f.stranger)
				s.send(stranger, to.String())
				if !s.gets(server, lab.Patience) {
					t.Fatal("even without a guard nothing arrives")
				}
				s.open()
				s.load(0)
				s.send(stranger, to.String())
				if s.gets(server, silence) {
					t.Error("a stranger's datagram arrived")
				}
				g := sshGrant("alice", netip.MustParseAddrPort(f.from).Addr().String(), long)
				g.Ports = []service.Ports{ports("udp/5000-5001")}
				s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
				s.send(alice, to.String())
				if !s.gets(server, lab.Patience) {
					t.Error("alice's datagram did not arrive")
				}
			})
		}
	})
}

// joined opens a UDP socket of the gateway that has joined a group.
func (s *site) joined(group netip.AddrPort) *net.UDPConn {
	s.Helper()
	index, _, err := s.gw.Interface("vs")
	s.must(err)
	var c *net.UDPConn
	s.must(s.gw.Do(func() (err error) {
		c, err = net.ListenMulticastUDP("udp4", &net.Interface{Index: index}, net.UDPAddrFromAddrPort(group))
		return err
	}))
	s.Cleanup(func() { c.Close() })
	return c
}

// TestOwnMulticastFromAGuardedPort: a program of the host hears what another one of it sends to a group from a guarded
// port, although the datagram comes back with the host's own address.
func TestOwnMulticastFromAGuardedPort(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, guarding("udp/5000"))
		group := netip.MustParseAddrPort("239.1.2.3:7000")
		hears, sender := s.joined(group), s.udp(s.gw, "192.0.2.1:5000")
		s.send(sender, group.String())
		if !s.gets(hears, lab.Patience) {
			t.Error("the host does not hear itself")
		}
	})
}

func TestPortRange(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, guarding("tcp/60000-60010"))
		for _, p := range []string{"60000", "60010", "60011"} {
			s.serve(":" + p)
		}
		s.open()
		s.load(0)
		s.dark(f.alice, f.gateway, "60000")
		s.dark(f.alice, f.gateway, "60010")
		s.connect(f.alice, f.gateway, "60011")
		g := sshGrant("alice", f.alice, long)
		g.Ports = []service.Ports{ports("tcp/60000-60010")}
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		s.connect(f.alice, f.gateway, "60000")
		s.connect(f.alice, f.gateway, "60010")
		s.dark(f.alice, f.gateway, "22")
		s.dark(f.stranger, f.gateway, "60000")
	})
}

// TestWideRange: more elements than fit into one message.
func TestWideRange(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		const wide = "tcp/10000-11200"
		s := k.newSite(t, guarding(wide))
		s.serve(":11200")
		s.open()
		s.load(0)
		s.dark("192.0.2.2", "192.0.2.1", "11200")
		g := sshGrant("alice", "192.0.2.2", long)
		g.Ports = []service.Ports{ports(wide)}
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		s.connect("192.0.2.2", "192.0.2.1", "11200")
		s.load(0)
		s.connect("192.0.2.2", "192.0.2.1", "11200")
		s.revoke(Match{})
		s.dark("192.0.2.2", "192.0.2.1", "11200")
	})
}

func TestLocalClient(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		for _, to := range []string{"127.0.0.1:22", "[::1]:22", "192.0.2.1:22", "[2001:db8::1]:22"} {
			c, err := lab.Dial(s.gw, "", to, lab.Patience)
			if err != nil {
				t.Errorf("got %v from the host itself to %s, want a connection", err, to)
				continue
			}
			s.echoes(c)
			c.Close()
		}
		s.refusal(s.gw, "127.0.0.1:0", "127.0.0.1:62201") // the port is not silent to the host itself
	})
}

// TestLocalSession: a session inside the host that is older than the guard, and in which the server speaks first.
func TestLocalSession(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, guarding("tcp/2300"))
		var clients, servers []net.Conn
		accept := s.listen(":2300")
		for _, to := range []string{"127.0.0.1:2300", "192.0.2.1:2300", "[2001:db8::1]:2300"} {
			// The kernel may take a moment to treat a new address as its own.
			lab.Eventually(t, "a local connection", func() bool {
				c, err := lab.Dial(s.gw, "", to, silence)
				if err == nil {
					t.Cleanup(func() { c.Close() })
					clients, servers = append(clients, c), append(servers, accept(c))
				}
				return err == nil
			})
		}
		s.open()
		s.load(0)
		for i, c := range clients {
			s.speaks(servers[i], c)
		}
	})
}

// TestUnguardedSession: ports that are not guarded are left alone whatever happens.
func TestUnguardedSession(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, nil)
		accept := s.listen(":2400")
		c := lab.Value(s.dial(f.stranger, f.gateway, "2400"))(s)
		defer c.Close()
		server := accept(c)
		s.open()
		s.load(0)
		s.speaks(server, c)
	})
}

// TestOtherProtocols: packets that are too short to have ports pass in both directions.
func TestOtherProtocols(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) { k.guarded(t, cutting("tcp/2300")).otherProtocols() })
}

// otherProtocols has the gateway and the client send each other a byte of another protocol.
func (s *site) otherProtocols() {
	s.Helper()
	raw := func(h *lab.Host, addr string) (c net.PacketConn) {
		s.must(h.Do(func() (err error) { c, err = net.ListenPacket("ip:253", addr); return err }))
		s.Cleanup(func() { c.Close() })
		return c
	}
	for _, f := range bothFamilies {
		server, client := raw(s.gw, f.gateway), raw(s.client, f.alice)
		for _, way := range []struct {
			from, to net.PacketConn
			addr     string
		}{{client, server, f.gateway}, {server, client, f.alice}} {
			_, err := way.from.WriteTo([]byte{1}, &net.IPAddr{IP: net.ParseIP(way.addr)})
			s.must(err)
			s.must(way.to.SetReadDeadline(time.Now().Add(lab.Patience)))
			if _, _, err := way.to.ReadFrom(make([]byte, 100)); err != nil {
				s.Errorf("a packet of another protocol to %s was lost: %v", way.addr, err)
			}
		}
	}
}

func TestTrustedInterface(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, func(c *Config) { c.Trusted = []string{"vs"}; guarding("udp/5000")(c) })
		stranger, _, _ := s.twoLinks()
		s.connect("192.0.2.2", "192.0.2.1", "22")
		s.connect("2001:db8::2", "2001:db8::1", "22")
		s.trustsOnlyTheFirst(stranger)
	})
}

// TestTrustedTarget: a machine behind the gateway is also open to clients on a trusted interface.
func TestTrustedTarget(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, func(c *Config) {
			c.Trusted = []string{"vs"}
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: rangesOf("tcp/22")}}
		})
		s.inner()
		s.open()
		s.load(0)
		s.connect(f.stranger, innerAddr[f.name], "22")
	})
}

// TestTrustedPushingServer: packets that leave by a trusted interface are left alone too, and by no other.
func TestTrustedPushingServer(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Trusted = []string{"vs"}; guarding("tcp/2300", "udp/5000")(c) })
	s.push(":2300")
	other := s.udp(s.behind(), "198.51.100.5:4000")
	server := s.udp(s.gw, "198.51.100.1:5000")
	s.flushRuleset()
	s.another(func(c *nft.Conn) { // connection tracking stays enabled
		chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, 0, nftables.IsReply().Exprs...)
	})
	c := lab.Value(s.dial("192.0.2.3", "192.0.2.1", "2300"))(s)
	defer c.Close()
	s.exchange(other, server)
	s.load(0)
	keepsHearing(t, c)
	server.WriteTo([]byte("hello"), other.LocalAddr()) // dropped, which is an error
	if s.gets(other, silence) {
		t.Error("a server is heard on a link that is not trusted")
	}
}

// TestOwnFlowFromAGuardedPort: the host's own flows pass from a guarded port, even if its sessions end with the
// grant, and to a neighbour.
func TestOwnFlowFromAGuardedPort(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for i, guarding := range []func(...string) func(*Config){guarding, cutting} {
			s := k.guarded(t, guarding("tcp/2200", "udp/123"))
			s.twoLinks()
			for _, f := range append(bothFamilies, nearby) {
				t.Run(fmt.Sprint(f.name, i), func(t *testing.T) {
					s.T = t
					s.ownFlows(f)
				})
			}
		}
	})
}

// ownFlows has the gateway connect from tcp/2200 and send a question from udp/123.
func (s *site) ownFlows(f sides) {
	s.Helper()
	own, theirs := s.dev(f, s.gw, "vs"), s.dev(f, s.client, "vc")
	echo := lab.Value(lab.EchoServer(s.client, theirs(f.alice, "7000")))(s)
	defer echo.Close()
	c := lab.Value(lab.Dial(s.gw, own(f.gateway, "2200"), own(f.alice, "7000"), lab.Patience))(s)
	defer c.Close()
	s.echoes(c)

	server, asks := s.udp(s.client, theirs(f.alice, "1123")), s.udp(s.gw, own(f.gateway, "123"))
	s.send(asks, own(f.alice, "1123"))
	if !s.gets(server, lab.Patience) {
		s.Fatal("the question did not arrive")
	}
	s.send(server, theirs(f.gateway, "123"))
	if !s.gets(asks, lab.Patience) {
		s.Error("the answer did not arrive")
	}
}

// inner puts a machine behind the gateway, with an echo server on port 22.
func (s *site) inner() *lab.Host {
	s.Helper()
	inner := s.behind()
	echo := lab.Value(lab.EchoServer(inner, ":22"))(s)
	s.Cleanup(func() { echo.Close() })
	return inner
}

// behind puts a machine behind the gateway.
func (s *site) behind() *lab.Host {
	s.Helper()
	inner := lab.New(s, "inner")[0]
	s.must(lab.Link(s.gw, "in", inner, "eth0"))
	for _, a := range []struct{ gw, inner, gwAddr string }{
		{"198.51.100.1/24", "198.51.100.5/24", "198.51.100.1"},
		{"2001:db8:1::1/64", "2001:db8:1::5/64", "2001:db8:1::1"},
	} {
		s.must(s.gw.AddAddr("in", a.gw))
		s.must(inner.AddAddr("eth0", a.inner))
		s.must(inner.Route("default", a.gwAddr))
	}
	s.must(s.gw.Forward())
	s.must(s.client.Route("198.51.100.0/24", "192.0.2.1"))
	s.must(s.client.Route("2001:db8:1::/64", "2001:db8::1"))
	return inner
}

var innerAddr = map[string]string{"IPv4": "198.51.100.5", "IPv6": "2001:db8:1::5"}

func TestTransitIsUntouched(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		inner := s.inner()
		s.connect(f.alice, innerAddr[f.name], "22")
		s.dark(f.alice, f.gateway, "22")
		to := net.JoinHostPort(innerAddr[f.name], "62201")
		server := s.udp(inner, to)
		s.send(s.udp(s.client, net.JoinHostPort(f.alice, "0")), to)
		if !s.gets(server, lab.Patience) {
			t.Error("a datagram to the knock port's number on another machine was lost")
		}
	})
}

// TestFurtherAddresses: a destination that a service lists is guarded as if it were local.
func TestFurtherAddresses(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: rangesOf("tcp/22")}}
		})
		s.inner()
		s.dark(f.alice, innerAddr[f.name], "22")
		s.grant("alice", f.alice, long) // at the gateway
		s.connect(f.alice, f.gateway, "22")
		s.dark(f.alice, innerAddr[f.name], "22")
		s.must(s.Grant(s.Context(), []Grant{s.toInner("bob", f.stranger, f)}, time.Now()))
		s.connect(f.stranger, innerAddr[f.name], "22")
		s.dark(f.stranger, f.gateway, "22")
	})
}

// toInner returns a grant to reach tcp/22 of the inner machine.
func (s *site) toInner(client, source string, f sides) Grant {
	g := sshGrant(client, source, long)
	g.To = []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}
	return g
}

// publish leads port 2222 of the gateway to the inner machine.
func (s *site) publish(f sides) {
	s.Helper()
	to := netip.MustParseAddr(innerAddr[f.name])
	gw := netip.MustParseAddr(f.gateway)
	family, offset := uint32(unix.NFPROTO_IPV4), uint32(16)
	if to.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	s.another(func(c *nft.Conn) {
		// meta nfproto FAMILY ip daddr GATEWAY tcp dport 2222 dnat to INNER:22
		chainOf(c, nft.ChainTypeNAT, nft.ChainHookPrerouting, -100, nftables.Rule(
			nftables.Meta(expr.MetaKeyNFPROTO, []byte{byte(family)}),
			nftables.Raw(
				&expr.Payload{DestRegister: nftables.Register, Base: expr.PayloadBaseNetworkHeader, Offset: offset,
					Len: uint32(gw.BitLen() / 8)},
				nftables.Equal(gw.AsSlice()),
			),
			nftables.L4Proto(service.TCP),
			nftables.Raw(nftables.Port(nftables.Register, nftables.Dport), nftables.Equal([]byte{2222 >> 8, 2222 & 0xff})),
			nftables.Raw(
				&expr.Immediate{Register: 1, Data: to.AsSlice()},
				&expr.Immediate{Register: 2, Data: []byte{0, 22}},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
			)).Exprs...)
	})
}

func TestPortPublishedByDNAT(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, guarding("tcp/2222"))
		s.inner()
		s.publish(f)
		s.connect(f.alice, f.gateway, "2222")
		s.open()
		s.load(0)
		s.dark(f.stranger, f.gateway, "2222")
		s.grant("alice", f.alice, long)
		s.dark(f.alice, f.gateway, "2222") // another port
		g := sshGrant("alice", f.alice, long)
		g.Ports[0] = ports("tcp/2222")
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		session := s.connect(f.alice, f.gateway, "2222")
		s.dark(f.stranger, f.gateway, "2222")
		s.revoke(Match{})
		s.dark(f.alice, f.gateway, "2222")
		s.echoes(session)
	})
}

// TestBridgedMachines: a gateway that switches loses nothing that it only forwards, also beside a listed machine.
func TestBridgedMachines(t *testing.T) {
	s := guarded(t, func(c *Config) {
		c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.9")}, Ports: rangesOf("tcp/22")}}
	})
	hosts := lab.New(t, "left", "right")
	s.must(lab.Link(s.gw, "p1", hosts[0], "eth0"))
	s.must(lab.Link(s.gw, "p2", hosts[1], "eth0"))
	s.must(s.gw.Bridge("br0", "p1", "p2"))
	s.must(s.gw.AddAddr("br0", "198.51.100.1/24"))
	s.must(hosts[0].AddAddr("eth0", "198.51.100.2/24"))
	s.must(hosts[1].AddAddr("eth0", "198.51.100.3/24"))
	// With br_netfilter, bridged packets pass through prerouting too.
	for _, name := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
		if err := s.gw.Sysctl(name, "1"); err != nil {
			t.Logf("bridged packets do not pass through the guard here: %v", err)
		}
	}
	echo := lab.Value(lab.EchoServer(hosts[1], ":22"))(s)
	defer echo.Close()
	c := lab.Value(lab.Dial(hosts[0], "", "198.51.100.3:22", lab.Patience))(s)
	defer c.Close()
	s.echoes(c)
	if c, err := lab.Dial(hosts[0], "", "198.51.100.1:22", silence); err == nil {
		c.Close()
		t.Error("the gateway's own port is open to a bridged machine")
	}
}

// TestInterfaceGoesAndComes: the guard does not depend on the index of an interface, and an interface that is trusted
// by name is trusted again when it comes back.
func TestInterfaceGoesAndComes(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Trusted = []string{"wg0"} })
	s.grant("alice", "192.0.2.2", long)
	s.must(s.gw.Delete("vs"))
	s.must(lab.Link(s.client, "vc", s.gw, "vs"))
	for _, a := range []string{"192.0.2.2/24", "192.0.2.3/24"} {
		s.must(s.client.AddAddr("vc", a))
	}
	s.must(s.gw.AddAddr("vs", "192.0.2.1/24"))
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.dark("192.0.2.3", "192.0.2.1", "22")
	s.must(lab.Link(s.client, "wc", s.gw, "wg0"))
	s.must(s.client.AddAddr("wc", "198.51.100.2/24"))
	s.must(s.gw.AddAddr("wg0", "198.51.100.1/24"))
	s.connect("198.51.100.2", "198.51.100.1", "22")
	s.dark("192.0.2.3", "192.0.2.1", "22")
}
