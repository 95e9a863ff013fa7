package firewall

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestTwoForwardsToOnePlace: where two ports lead to one place, the end of one grant does not end the sessions of the
// other, or the backend refuses the setting.
func TestTwoForwardsToOnePlace(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, way := range forwardings()[3:5] { // with cut
			f := bothFamilies[0]
			w := &forwarded{forwarding: way, sides: f}
			w.site = k.newSite(t, func(c *Config) {
				one := way.forwards()[0]
				two := one
				one.Ports, two.Ports = rangesOf("tcp/2222"), rangesOf("tcp/2223")
				c.Forwards = []Forward{one, two}
				cutting("tcp/2222", "tcp/2223")(c)
			})
			if strings.HasPrefix(k.name, "iptables") {
				w.must(w.gw.Do(func() error {
					fw, err := New(w.config, slog.New(slog.DiscardHandler))
					if err == nil || !strings.Contains(err.Error(), "two ports lead to") {
						w.Errorf("got %v", err)
					}
					if err == nil {
						return fw.Close()
					}
					return nil
				}))
				continue
			}
			w.at, w.place = w.gw, f.gateway
			if way.away {
				w.at, w.place = w.behind(), innerAddr[f.name]
			}
			w.accept = w.listens(w.at, ":2300")
			w.open()
			w.load(0)
			w.grantPorts("one", f.alice, long, "tcp/2222")
			w.grantPorts("two", f.alice, long, "tcp/2223")
			v := w.talks(f.alice)
			w.revoke(Match{Services: []string{"two"}})
			w.mutual(v, true)
		}
	})
}

// TestForwardNearby: a forwarded port leads a link-local client on, on its own link, and the client's other ports lead
// nowhere else.
func TestForwardNearby(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		w := newForwarded(t, k, forwarding{name: "port"}, bothFamilies[1])
		stranger, first, _ := w.twoLinks()
		ssh, led := near("alice", first, long), near("alice", first, long)
		led.Service, led.Ports = "led", rangesOf("tcp/2222")
		w.must(w.Grant(t.Context(), []Grant{ssh, led}, time.Now()))
		c := w.opensNearAt(w.client, "vc", "2222", lab.Patience)
		if c == nil {
			t.Fatal("alice is shut out on her link")
		}
		w.mutual(session{c, w.hearing(w.accept, c)}, true)
		if c = w.opensNear(w.client, "vc", lab.Patience); c == nil {
			t.Fatal("alice is shut out of another port")
		}
		w.echoes(c)
		if w.opensNearAt(stranger, "eth0", "2222", silence) != nil {
			t.Error("a stranger on another link is let in")
		}
	})
}

// TestForwardBesideTarget: the port of a machine to which a port of the gateway leads is a service of its own too,
// whose sessions end with their grants. Neither grant changes what the other one gives.
func TestForwardBesideTarget(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		way, machine := forwarding{away: true}, netip.MustParseAddr(innerAddr[f.name])
		w := &forwarded{forwarding: way, sides: f}
		w.site = k.newSite(t, func(c *Config) {
			c.Forwards = way.forwards()
			guarding("tcp/2222", "udp/2222")(c)
			c.Targets = []Target{{Addresses: []netip.Addr{machine}, Ports: rangesOf("tcp/2300")}}
			c.Cut = rangesOf("tcp/2300")
		})
		w.at, w.place = w.behind(), innerAddr[f.name]
		w.accept = w.listens(w.at, ":2300")
		w.open()
		w.load(0)
		direct := sshGrant("alice", f.alice, long)
		direct.Service, direct.Ports, direct.To = "direct", rangesOf("tcp/2300"), []netip.Addr{machine}
		w.must(w.Grant(t.Context(), []Grant{direct}, time.Now()))
		c := lab.Value(w.dial(f.alice, w.place, "2300"))(t)
		defer c.Close()
		there := session{c, w.hearing(w.accept, c)}
		w.knocks(f.alice)
		v := w.talks(f.alice)
		w.revoke(Match{Services: []string{"direct"}})
		w.mutual(there, false)
		w.mutual(v, true)
	})
}

// TestForwardOverFirstLoad: a session with the program on a port that the first guard forwards continues.
func TestForwardOverFirstLoad(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.newSite(t, func(c *Config) {
			c.Forwards = forwarding{}.forwards()
			guarding("tcp/2222", "udp/2222")(c)
		})
		s.listens(s.gw, ":2300")
		v := s.talk(s.listen(":2222"), net.JoinHostPort(f.stranger, "0"), f.gateway, "2222")
		s.open()
		s.load(0)
		s.mutual(v, true)
	})
}

// TestForwardBesideOwnFlows: a forwarded UDP port changes nothing for flows that the host begins itself: to a peer that
// has tried a port that leads to a guarded one, and from the place to which the forwarded port leads, even to a port of
// the same number.
func TestForwardBesideOwnFlows(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		w := newForwarded(t, kinds()[0], forwarding{name: "port"}, f, guarding("udp/5000"))
		w.nft(fmt.Sprintf(`table inet leads {
chain in { type nat hook prerouting priority -100; udp dport 5001 redirect to :5000; }
chain out { type nat hook output priority -100; udp sport 2300 udp dport 2222 dnat %s to %s; }
}`, nftFamily[f.name], net.JoinHostPort(f.alice, "7000")))
		peer := w.udp(w.client, net.JoinHostPort(f.alice, "7000"))
		own, place := w.udp(w.gw, net.JoinHostPort(f.gateway, "5000")), w.udp(w.gw, net.JoinHostPort(f.gateway, "2300"))
		w.send(peer, net.JoinHostPort(f.gateway, "5001"))
		if w.gets(own, silence) {
			t.Error("a stranger's datagram was delivered")
		}
		w.exchange(own, peer)
		for range 2 {
			w.send(place, net.JoinHostPort(f.alice, "2222"))
			if !w.gets(peer, lab.Patience) {
				t.Fatal("the question was lost")
			}
			w.send(peer, place.LocalAddr().String())
			if !w.gets(place, lab.Patience) {
				t.Fatal("the answer was lost")
			}
			w.forgetFlows()
		}
	})
}
