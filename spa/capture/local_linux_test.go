package capture

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// unnamed are prefixes that no interface of the gateway has, and an address in each.
var unnamed = map[string]netip.AddrPort{
	"198.51.100.7/32":   addrPort("198.51.100.7", 62201),
	"203.0.113.64/26":   addrPort("203.0.113.99", 62201),
	"2001:db8:7::7/128": addrPort("2001:db8:7::7", 62201),
	"2001:db8:8::/48":   addrPort("2001:db8:8:5::1", 62201),
}

// localRoute is the route in table local that makes a prefix the host's own.
func localRoute(t *testing.T, prefix, dev string) *netlink.Route {
	t.Helper()
	_, to, err := net.ParseCIDR(prefix)
	lab.Must(t, err)
	link := lab.Value(netlink.LinkByName(dev))(t)
	return &netlink.Route{Dst: to, LinkIndex: link.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Scope: netlink.SCOPE_HOST}
}

func (r reading) wantNotForUs(t *testing.T, in injector, to netip.AddrPort) {
	t.Helper()
	before := r.Stats()
	in.send(t, in.frame(knock(senderTo(to), to)))
	r.waitFor(t, before, Stats{Received: 1, NotForUs: 1})
}

func senderTo(to netip.AddrPort) netip.AddrPort {
	if to.Addr().Is4() {
		return client4
	}
	return client6
}

// TestLocalRoutes: an address that is the host's own only by a local route can be knocked on like an interface's
// address, as long as the route exists; packets from that address are refused.
func TestLocalRoutes(t *testing.T) {
	for prefix, to := range unnamed {
		t.Run(prefix, func(t *testing.T) {
			client, gateway := lab.Pair(t)
			s := read(t, listen(t, gateway, knocks))
			in := inject(t, client, "vc", gateway, "vs")
			passes := func(s reading) {
				t.Helper()
				in.send(t, in.frame(knock(senderTo(to), to)))
				if p := s.expect(t); p.To != to {
					t.Errorf("got a packet to %v, want %v", p.To, to)
				}
			}
			s.wantNotForUs(t, in, to)
			lab.Must(t, gateway.Do(func() error { return netlink.RouteAdd(localRoute(t, prefix, "vs")) }))
			passes(s)
			late := read(t, listen(t, gateway, knocks))
			passes(late)
			s.expect(t)

			before := s.Stats()
			ours := map[bool]netip.AddrPort{true: gateway4, false: gateway6}[to.Addr().Is4()]
			in.send(t, in.frame(knock(netip.AddrPortFrom(to.Addr(), 40000), ours)))
			s.waitFor(t, before, Stats{Received: 1, OwnSource: 1})

			// Replace the route, then delete it: the netlink events name only the new one.
			lab.Must(t, gateway.Do(func() error { return netlink.RouteReplace(localRoute(t, prefix, "lo")) }))
			passes(s)
			lab.Must(t, gateway.Do(func() error { return forgetLocal(t, prefix) }))
			// A packet may overtake the event.
			lab.Eventually(t, "the address to be nobody's", func() bool {
				before := s.Stats()
				in.send(t, in.frame(knock(senderTo(to), to)))
				lab.Eventually(t, "the packet", func() bool { return s.Stats().Received > before.Received })
				if s.Stats().Passed > before.Passed {
					s.expect(t)
				}
				return s.Stats().NotForUs > before.NotForUs
			})
		})
	}
}

// forgetLocal deletes the local routes to a prefix. IPv6 may have one per interface.
func forgetLocal(t *testing.T, prefix string) error {
	family := netlink.FAMILY_V4
	if netip.MustParsePrefix(prefix).Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteListFiltered(family, localRoute(t, prefix, "lo"),
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	for i := range routes {
		err = errors.Join(err, netlink.RouteDel(&routes[i]))
	}
	return err
}

// TestOtherRoutes: a route of another type or in another table makes no address the host's own.
func TestOtherRoutes(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := read(t, listen(t, gateway, knocks))
	in := inject(t, client, "vc", gateway, "vs")
	for prefix, to := range unnamed {
		for _, change := range []func(*netlink.Route){
			func(r *netlink.Route) { r.Table = 100 }, // as for TPROXY
			func(r *netlink.Route) {
				r.Type, r.Scope, r.Table = unix.RTN_UNICAST, netlink.SCOPE_LINK, unix.RT_TABLE_MAIN
			},
			func(r *netlink.Route) { r.Type, r.LinkIndex = unix.RTN_BLACKHOLE, 0 },
		} {
			lab.Must(t, gateway.Do(func() error {
				route := localRoute(t, prefix, "vs")
				change(route)
				return netlink.RouteAdd(route)
			}))
			s.wantNotForUs(t, in, to)
		}
	}
	if len(s.host.local) == 0 || s.host.isOwn(netip.MustParseAddr("127.0.0.1")) {
		t.Error("the routes of the host's own addresses are not known, or the loopback is one of them")
	}
}

// TestAnswerFromALocalRoute: the answer comes from the address that was knocked on.
func TestAnswerFromALocalRoute(t *testing.T) {
	client, gateway := lab.Pair(t)
	for prefix := range unnamed {
		lab.Must(t, gateway.Local(prefix))
	}
	s, r := read(t, listen(t, gateway, knocks)), respond(t, gateway)
	for prefix, to := range unnamed {
		via := "192.0.2.1"
		if to.Addr().Is6() {
			via = "2001:db8::1"
		}
		lab.Must(t, client.Route(prefix, via))
		answerFor(t, dialUDP(t, client, senderTo(to), to), s, r, 200)
	}
}

// TestAlternativeName: the sniffer listens on an interface by any of its names, whenever the name appears.
func TestAlternativeName(t *testing.T) {
	client, gateway := lab.Pair(t)
	alt := func(change func(netlink.Link, string) error) {
		t.Helper()
		lab.Must(t, gateway.Do(func() error {
			link, err := netlink.LinkByName("vs")
			if err != nil {
				return err
			}
			return change(link, "enp0s31f6-by-a-long-name")
		}))
	}
	named := knocks
	named.Interfaces = []string{"other", "enp0s31f6-by-a-long-name"}
	s := read(t, listen(t, gateway, named))
	in := inject(t, client, "vc", gateway, "vs")
	wrong := func() {
		t.Helper()
		before := s.Stats()
		in.send(t, in.frame(knock(client4, gateway4)))
		s.waitFor(t, before, Stats{Received: 1, WrongInterface: 1})
	}
	wrong()
	alt(netlink.LinkAddAltName)
	in.send(t, in.frame(knock(client4, gateway4)))
	s.expect(t)
	late := read(t, listen(t, gateway, named))
	in.send(t, in.frame(knock(client6, gateway6)))
	late.expect(t)
	s.expect(t)
	alt(netlink.LinkDelAltName)
	wrong()
}
