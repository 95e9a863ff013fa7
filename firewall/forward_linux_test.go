package firewall

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// forwarding is a service that leads elsewhere, as the tests set it up: tcp/2222 and udp/2222 of the gateway lead to
// port 2300 of a machine behind it, or of the gateway itself. The gateway has a program on 2222, which nobody from
// outside may reach.
type forwarding struct {
	name             string
	away, masquerade bool
	cut              bool
}

// forwardings are all of them.
func forwardings() []forwarding {
	var all []forwarding
	for _, cut := range []bool{false, true} {
		end := map[bool]string{true: " cut"}[cut]
		all = append(all, forwarding{"port" + end, false, false, cut}, forwarding{"machine" + end, true, false, cut},
			forwarding{"masqueraded machine" + end, true, true, cut})
	}
	return all
}

// eachForward runs a test over backends and each way to forward, and over both families of each.
func eachForward(t *testing.T, ks []kind, do func(*testing.T, *forwarded)) {
	t.Helper()
	overKinds(t, ks, func(t *testing.T, k kind) {
		for _, way := range forwardings() {
			for _, f := range bothFamilies {
				t.Run(way.name+" "+f.name, func(t *testing.T) {
					t.Parallel()
					do(t, newForwarded(t, k, way, f))
				})
			}
		}
	})
}

// forwarded is a site with a service that leads elsewhere.
type forwarded struct {
	*site
	sides
	forwarding
	place string // what 2222 leads to
	at    *lab.Host
	accept,
	decoy net.Listener
}

func newForwarded(t *testing.T, k kind, way forwarding, f sides, more ...func(*Config)) *forwarded {
	t.Helper()
	w := &forwarded{forwarding: way, sides: f}
	w.site = k.newSite(t, func(c *Config) {
		c.Forwards = way.forwards()
		cutting("tcp/2222", "udp/2222")(c)
		for _, change := range more {
			change(c)
		}
	})
	if !way.cut {
		w.config.Cut = nil
	}
	w.at, w.place = w.gw, f.gateway
	if way.away {
		w.at, w.place = w.behind(), innerAddr[f.name]
	}
	w.accept, w.decoy = w.listens(w.at, ":2300"), w.listens(w.gw, ":2222")
	w.open()
	w.load(0)
	return w
}

// forwards returns the setting for both families.
func (way forwarding) forwards() []Forward {
	f := Forward{Ports: rangesOf("tcp/2222 udp/2222"), Masquerade: way.masquerade}
	if !way.away {
		f.Port = 2300
		return []Forward{f}
	}
	for _, a := range innerAddr {
		f.To = append(f.To, netip.AddrPortFrom(netip.MustParseAddr(a), 2300))
	}
	return []Forward{f}
}

func (s *site) listens(h *lab.Host, addr string) net.Listener {
	s.Helper()
	var l net.Listener
	s.must(h.Do(func() (err error) { l, err = net.Listen("tcp", addr); return err }))
	s.Cleanup(func() { l.Close() })
	return l
}

// knocks grants the forwarded port.
func (w *forwarded) knocks(from string) { w.grantPorts("led", from, long, "tcp/2222", "udp/2222") }

// talks begins a session through the forwarded port. It must reach what the port leads to, and nothing else.
func (w *forwarded) talks(from string) session { return w.talksBy(from, w.accept) }

func (w *forwarded) talksBy(from string, l net.Listener) session {
	w.Helper()
	c, err := w.dial(from, w.gateway, "2222")
	if err != nil {
		w.Fatalf("%s got %v from the forwarded port, want a connection", from, err)
	}
	w.Cleanup(func() { c.Close() })
	server := w.hearing(l, c)
	seen := netip.MustParseAddrPort(server.RemoteAddr().String()).Addr().Unmap()
	if own := seen == netip.MustParseAddr(from); own == (w.masquerade && l == w.accept) {
		w.Errorf("the server sees %v, but masquerade is %v", seen, w.masquerade)
	}
	v := session{c, server}
	w.mutual(v, true)
	return v
}

// hearing returns the server's end of a connection. Attempts that only checked whether the port is open wait there too,
// and their clients have closed them.
func (w *forwarded) hearing(l net.Listener, client net.Conn) net.Conn {
	w.Helper()
	_, err := client.Write([]byte("news"))
	w.must(err)
	w.must(l.(*net.TCPListener).SetDeadline(time.Now().Add(lab.Patience)))
	for {
		server := lab.Value(l.Accept())(w)
		w.Cleanup(func() { server.Close() })
		if hears(server, lab.Patience) {
			return server
		}
	}
}

// shut checks that a source reaches neither the forwarded port nor what it leads to.
func (w *forwarded) shut(from string) {
	w.Helper()
	server, stray := w.udpAt(w.at, "2300"), w.udpAt(w.gw, "2222")
	defer server.Close()
	defer stray.Close()
	w.send(w.udp(w.client, net.JoinHostPort(from, "0")), net.JoinHostPort(w.gateway, "2222"))
	w.send(w.udp(w.client, net.JoinHostPort(from, "0")), net.JoinHostPort(w.place, "2300"))
	w.dark(from, w.gateway, "2222")
	w.dark(from, w.place, "2300")
	if w.gets(server, time.Millisecond) || w.gets(stray, time.Millisecond) {
		w.Errorf("a datagram from %s was delivered", from)
	}
	for _, l := range []net.Listener{w.accept, w.decoy} {
		w.must(l.(*net.TCPListener).SetDeadline(time.Now()))
		if c, err := l.Accept(); err == nil {
			c.Close()
			w.Errorf("%s got through to %s", from, l.Addr())
		}
	}
}

func (w *forwarded) udpAt(h *lab.Host, port string) *net.UDPConn { return w.udp(h, "[::]:"+port) }

// only checks that alice's grant opens the forwarded port, and nothing else.
func (w *forwarded) only() session {
	w.Helper()
	v := w.talks(w.alice)
	w.dark(w.alice, w.place, "2300")
	w.shut(w.stranger)
	return v
}

// TestForward: who gets where through a forwarded port, before, during and after a grant, and around the guard's own
// ends.
func TestForward(t *testing.T) {
	eachForward(t, kinds(), func(t *testing.T, w *forwarded) {
		w.shut(w.stranger)
		w.shut(w.alice)
		w.knocks(w.alice)
		v := w.only()

		w.shorten(Match{Client: "alice"}, 500*time.Millisecond)
		lab.Eventually(t, "the grant's end", func() bool { return !w.isOpen(w.alice, w.gateway, "2222") })
		w.drain()
		w.mutual(v, !w.cut)
		w.shut(w.alice)

		w.knocks(w.alice)
		v = w.talks(w.alice)
		w.revoke(Match{Client: "alice"})
		w.mutual(v, !w.cut)
		w.shut(w.alice)
		w.cuts(Match{Client: "alice"}, 0)

		w.knocks(w.alice)
		w.knocks(w.stranger)
		v, theirs := w.talks(w.alice), w.talks(w.stranger)
		if _, err := w.Cut(w.Context(), w.revoke(Match{Source: netip.MustParseAddr(w.alice)})); err != nil {
			t.Error(err)
		}
		w.mutual(v, false)
		w.mutual(theirs, true)
		w.shut(w.alice)
	})
}

// drain accepts the connections of attempts that only checked whether the port is open.
func (w *forwarded) drain() {
	w.Helper()
	l := w.accept.(*net.TCPListener)
	for {
		w.must(l.SetDeadline(time.Now().Add(time.Millisecond)))
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

// TestForwardPutBack: the guard is flushed by another tool, loaded again, changed and torn down.
func TestForwardPutBack(t *testing.T) {
	eachForward(t, kinds(), func(t *testing.T, w *forwarded) {
		w.knocks(w.alice)
		w.talks(w.alice) // whether it survives depends on what is sent while nothing is translated
		w.flushRuleset()
		w.load(0)
		v := w.only()
		w.load(0)
		w.mutual(v, true)

		without := w.config
		without.Forwards = nil
		w.must(w.gw.Do(func() error { return w.Reconfigure(t.Context(), without, time.Now()) }))
		w.dark(w.alice, w.gateway, "2222")
		w.knocks(w.alice)
		w.talksBy(w.alice, w.decoy) // the port is an ordinary one now
		w.dark(w.stranger, w.gateway, "2222")
		w.must(w.gw.Do(func() error { return w.Reconfigure(t.Context(), w.config, time.Now()) }))
		w.dark(w.alice, w.gateway, "2222")
		w.knocks(w.alice)
		w.only()

		w.must(w.gw.Do(func() error { return Teardown(w.config.State) }))
		w.nothingLeft()
		w.talksBy(w.stranger, w.decoy)
	})
}

// nothingLeft checks that no rule, chain or set of ours is in the kernel.
func (w *forwarded) nothingLeft() {
	w.Helper()
	left := w.runNFT("", "list", "ruleset")
	if w.kind.programs != "" {
		left += w.program("iptables-save") + w.program("ip6tables-save")
	}
	for _, word := range []string{"spa", "sallyport", "2222", "2300"} {
		if strings.Contains(left, word) {
			w.Errorf("%q is left: %s", word, left)
		}
	}
}

// TestForwardUDP: a session of datagrams ends as one of any other service does, although its server keeps sending.
func TestForwardUDP(t *testing.T) {
	eachForward(t, kinds()[:2], func(t *testing.T, w *forwarded) {
		server := w.udpAt(w.at, "2300")
		alice := w.udp(w.client, net.JoinHostPort(w.alice, "4000"))
		w.knocks(w.alice)
		peer := w.asks(alice, server)
		w.revoke(Match{})
		w.heard(server, alice, peer, !w.cut)
		w.knocks(w.alice)
		peer = w.asks(alice, server)
		w.heard(server, alice, peer, true)
		if _, err := w.Cut(w.Context(), w.revoke(Match{})); err != nil {
			t.Error(err)
		}
		for range 3 {
			w.heard(server, alice, peer, false)
		}
		w.forgetFlows()
		w.heard(server, alice, peer, false)

		// A peer that the server has not sent anything since.
		stranger := w.udp(w.client, net.JoinHostPort(w.stranger, "4000"))
		w.knocks(w.stranger)
		peer = w.asks(stranger, server)
		w.revoke(Match{})
		w.forgetFlows()
		w.heard(server, stranger, peer, false)
	})
}

// asks sends a datagram through the forwarded port, and returns the address from which the server sees it come.
func (w *forwarded) asks(client, server *net.UDPConn) netip.AddrPort {
	w.Helper()
	w.send(client, net.JoinHostPort(w.gateway, "2222"))
	w.must(server.SetReadDeadline(time.Now().Add(lab.Patience)))
	_, peer, err := server.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		w.Fatalf("the question was lost: %v", err)
	}
	return netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
}

// heard checks whether the client hears its server, and the server its client.
func (w *forwarded) heard(server, client *net.UDPConn, peer netip.AddrPort, want bool) {
	w.Helper()
	within := map[bool]time.Duration{true: lab.Patience, false: silence}[want]
	server.WriteToUDPAddrPort([]byte("news"), peer) // may fail, because the guard forbids it
	w.send(client, net.JoinHostPort(w.gateway, "2222"))
	if got := w.gets(client, within); got != want {
		w.Errorf("the client hears its server: %v, want %v", got, want)
	}
	if got := w.gets(server, max(within-silence, time.Millisecond)); got != want {
		w.Errorf("the server hears its client: %v, want %v", got, want)
	}
	w.send(client, net.JoinHostPort(w.place, "2300"))
	if w.gets(server, silence) {
		w.Error("the server hears its client without the gateway's port")
	}
}

// TestForwardRefuses: settings that could not be enforced.
func TestForwardRefuses(t *testing.T) {
	to := []netip.AddrPort{netip.MustParseAddrPort("198.51.100.5:22")}
	for name, change := range map[string]func(*Config){
		"range":       func(c *Config) { c.Forwards[0].Ports = rangesOf("tcp/2222-2223") },
		"not guarded": func(c *Config) { c.Guarded = nil },
		"nowhere":     func(c *Config) { c.Forwards[0].To = nil },
		"both":        func(c *Config) { c.Forwards[0].Port = 22 },
		"twice":       func(c *Config) { c.Forwards = append(c.Forwards, c.Forwards[0]) },
		"no port":     func(c *Config) { c.Forwards[0].To[0] = netip.MustParseAddrPort("198.51.100.5:0") },
		"loopback":    func(c *Config) { c.Forwards[0].To[0] = netip.MustParseAddrPort("127.0.0.1:22") },
		"link-local":  func(c *Config) { c.Forwards[0].To[0] = netip.MustParseAddrPort("[fe80::1]:22") },
		"to itself":   func(c *Config) { c.Forwards[0].To, c.Forwards[0].Port = nil, 2222 },
		"mode admit":  admit,
	} {
		c := Config{Backend: BackendDryRun, Guarded: rangesOf("tcp/2222"), Forwards: []Forward{{
			Ports: []service.Ports{ports("tcp/2222")}, To: append([]netip.AddrPort(nil), to...)}}}
		if err := c.checked(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.checked(); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func (c *Config) checked() error {
	c.setDefaults()
	return c.check()
}

// TestForwardInADryRun: a dry run logs where a port would lead.
func TestForwardInADryRun(t *testing.T) {
	s := newSite(t, func(c *Config) {
		guarding("tcp/2222", "tcp/2223")(c)
		c.Forwards = []Forward{{Ports: rangesOf("tcp/2222"), To: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.5:22")},
			Masquerade: true}, {Ports: rangesOf("tcp/2223"), Port: 22}}
	})
	s.says(s.dryRun(), "from=tcp/2222 to=198.51.100.5:22 masquerade=true", "from=tcp/2223 to=:22 masquerade=false")
}

// TestForwardAround: other ways to where a forwarded port leads, made by other tools.
func TestForwardAround(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		w := newForwarded(t, k, forwarding{away: true}, f)
		w.knocks(w.alice)
		v := w.talks(w.alice)
		defer w.watchUntil()()
		if k.programs != "" { // a tool that empties the table nat alone
			for _, program := range []string{"iptables", "ip6tables"} {
				w.program(program, "-w", lockWait, "-t", "nat", "-F")
			}
			lab.Eventually(t, "the way to the machine", func() bool { return w.isOpen(w.alice, w.gateway, "2222") })
			w.drain()
		}
		w.mutual(v, true)
		for port, to := range map[string]string{"8080": "2222", "8081": "2300"} { // to the forwarded port, to the machine's
			w.leads(port, to)
		}
		for _, from := range []string{w.alice, w.stranger} {
			w.dark(from, w.gateway, "8080")
			w.dark(from, w.gateway, "8081")
		}
		w.untracks()
		w.dark(w.stranger, w.gateway, "2222")
		w.dark(w.alice, w.gateway, "2222") // nothing leads an untracked packet on, and it must not reach the decoy
	})
}

// leads makes another tool lead a port of the gateway to one of its own, or to one of the machine.
func (w *forwarded) leads(port, to string) {
	w.Helper()
	at := net.JoinHostPort(map[string]string{"2222": w.gateway, "2300": w.place}[to], to)
	w.runNFT("table inet lead"+port+" { chain c { type nat hook prerouting priority -100; tcp dport "+port+" dnat "+
		map[string]string{"IPv4": "ip", "IPv6": "ip6"}[w.sides.name]+" to "+at+"; }; }\n", "-f", "-")
}

// untracks makes another tool keep the forwarded port out of connection tracking.
func (w *forwarded) untracks() {
	w.Helper()
	w.runNFT("table inet untracks { chain c { type filter hook prerouting priority -300; tcp dport 2222 notrack; }; }\n",
		"-f", "-")
}

// TestForwardTrial: if a trial ends while no daemon runs, the port is as it was before.
func TestForwardTrial(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		f := bothFamilies[0]
		w := newForwarded(t, k, forwarding{away: true}, f)
		inTime(t, 3*time.Second, func(within time.Duration) bool {
			w.must(w.gw.Do(func() error { return Teardown(w.config.State) }))
			w.open()
			w.load(within)
			return !w.isOpen(f.stranger, f.gateway, "2222")
		})
		w.die()
		lab.Eventually(t, "the end of the trial", func() bool { return w.isOpen(f.stranger, f.gateway, "2222") })
	})
}

// TestForwardTrusted: a host behind a trusted interface reaches the gateway's own port without a grant, and is led on
// only with one.
func TestForwardTrusted(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, way := range []forwarding{{away: true}, {name: "port"}} {
			w := newForwarded(t, k, way, f)
			w.config.Trusted = []string{"vs"}
			w.must(w.gw.Do(func() error { return w.Reconfigure(t.Context(), w.config, time.Now()) }))
			w.talksBy(w.stranger, w.decoy)
			w.knocks(w.alice)
			w.talks(w.alice)
			w.talksBy(w.stranger, w.decoy)
		}
	})
}
