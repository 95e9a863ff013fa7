package firewall

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestBareGuardLetsPass: the bare guard leaves alone what the full guard leaves alone, and it carries datagrams.
func TestBareGuardLetsPass(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, guarding("udp/5000"))
		_, link, _ := s.twoLinks()
		p := guard.Plan{Leases: []guard.Lease{
			{Element: guard.Element{Source: netip.MustParseAddr("fe80::a"), Link: link, Proto: service.TCP, Port: 22},
				Until: time.Now().Add(long)},
		}}
		type talk struct {
			client, server  *net.UDPConn
			remote, address netip.AddrPort
			heard           bool
		}
		var talks []talk
		for _, f := range bothFamilies {
			server := s.udp(s.gw, net.JoinHostPort(f.gateway, "5000"))
			for port, heard := range map[uint16]bool{4000: true, 4001: false} {
				v := talk{server: server, address: addrPort(f.gateway, 5000), remote: addrPort(f.alice, port), heard: heard}
				v.client = s.udp(s.client, v.remote.String())
				talks = append(talks, v)
				if heard {
					p.Carried = append(p.Carried,
						guard.Carried{Flow: guard.Flow{Proto: service.UDP, Remote: v.remote, Local: v.address},
							Until: time.Now().Add(long)})
				}
			}
		}
		s.open()
		s.bare(p)
		for _, v := range talks {
			within := map[bool]time.Duration{true: lab.Patience, false: silence}[v.heard]
			s.send(v.client, v.address.String())
			if s.gets(v.server, within) != v.heard {
				t.Errorf("a datagram from %v arrives: %v, want %v", v.remote, !v.heard, v.heard)
			}
			_, err := v.server.WriteToUDPAddrPort([]byte("hello"), v.remote)
			if (err == nil) != v.heard || s.gets(v.client, within) != v.heard {
				t.Errorf("a datagram to %v arrives: %v, want %v", v.remote, !v.heard, v.heard)
			}
		}
		for _, to := range []string{"127.0.0.1:22", "[::1]:22", "192.0.2.1:22", "[2001:db8::1]:22"} {
			c, err := lab.Dial(s.gw, "", to, lab.Patience)
			if err != nil {
				t.Errorf("got %v from the host itself to %s, want a connection", err, to)
				continue
			}
			s.echoes(c)
			c.Close()
		}
		if s.opensNear(s.client, "vc", lab.Patience) == nil {
			t.Error("a link-local client is shut out on its link")
		}
		s.otherProtocols()
	})
}

func addrPort(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

func TestBareGuardTrusts(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, func(c *Config) { c.Trusted = []string{"vs"}; guarding("udp/5000")(c) })
		s.open()
		stranger, _, _ := s.twoLinks()
		s.bare(guard.Plan{})
		s.connect("192.0.2.3", "192.0.2.1", "22")
		s.connect("2001:db8::3", "2001:db8::1", "22")
		server, theirs := s.trustsOnlyTheFirst(stranger), s.udp(stranger, "198.51.100.9:4000")
		server.WriteTo([]byte("hello"), theirs.LocalAddr()) // dropped, which is an error
		if s.gets(theirs, silence) {
			t.Error("a datagram leaves by an interface that is not trusted")
		}
	})
}

// trustsOnlyTheFirst checks that of two links the second is not trusted with the first: a datagram to the guarded port
// udp/5000 arrives by the first alone. A connection would show less, since a server's answers are filtered too. It
// returns that port's server.
func (s *site) trustsOnlyTheFirst(stranger *lab.Host) *net.UDPConn {
	s.Helper()
	s.must(s.gw.AddAddr("out", "198.51.100.1/24"))
	s.must(stranger.AddAddr("eth0", "198.51.100.9/24"))
	server := s.udp(s.gw, "0.0.0.0:5000")
	s.send(s.udp(stranger, "198.51.100.9:0"), "198.51.100.1:5000")
	if s.gets(server, silence) {
		s.Error("a datagram by an interface that is not trusted arrives")
	}
	s.send(s.udp(s.client, "192.0.2.3:0"), "192.0.2.1:5000")
	if !s.gets(server, lab.Patience) {
		s.Error("a datagram by a trusted interface does not arrive")
	}
	return server
}

// TestLawBare: the guard without connection tracking keeps the law for packets to a guarded port, and passes clients
// with a grant, even to a machine behind the gateway. ICMP errors, and packets that claim to come from a guarded
// port, are left to the full guard: the host itself answers the latter there.
func TestLawBare(t *testing.T) {
	for _, way := range []string{"delivered", "routed to a listed machine",
		"bridged with br_netfilter to a listed machine"} {
		t.Run(way, func(t *testing.T) {
			lawBackends(t, way, func(w *world) {
				r := newLawReport()
				state := &lawState{name: "bare guard", loaded: true}
				w.prepare(&lawState{}, Drop, long)
				w.bare(guard.Plan{})
				made, left := makeCases(w.way, state, 10000)
				var cases []*lawCase
				for _, c := range made {
					if !c.steps[0].isError() && !c.steps[0].back {
						cases = append(cases, c)
					}
				}
				w.before(state, cases)
				w.judge(state, Drop, cases, left, r)
				w.load(0)
				w.allow("client", long)
				w.bare(guard.Plan{Leases: w.held.Leases()})
				stop := w.pump()
				defer stop()
				for _, six := range []bool{false, true} {
					(&counter{world: w, six: six, report: r}).granted()
				}
				r.report(w.T)
			})
		})
	}
}
