package firewall

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// Cases of the law that need more than packets: a helper of connection tracking, a process on the gateway, a grant
// for something else.

// lawBackends runs a test in a world of a way, with each backend.
func lawBackends(t *testing.T, name string, do func(*world)) {
	t.Helper()
	lab.NeedNamespaces(t)
	ways := lawWays()
	i := slices.IndexFunc(ways, func(y *way) bool { return y.name == name })
	for _, k := range kinds()[:2] {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			do(newWorld(t, ways[i], k))
		})
	}
}

// heard reports whether a packet from a port was delivered to a server, as far as the test can see.
func (w *world) heard(port uint16, s *server) bool {
	w.Helper()
	see := newSight()
	s.look(see)
	half := false
	w.halfOpen(func(k lawKey) { half = half || s.proto == service.TCP && k == lawKey{s.six, port} })
	return half || s.count.take(port) > 0 || see.signs[familyIndex(s.six)][protoIndex(s.proto)][port] != 0
}

// visible are the services where a delivered packet is seen even if its sender's kernel ends at once what it did not
// begin.
func (w *world) visible() []lawService {
	if w.servers[0].count == nil {
		return lawServices[2:]
	}
	return lawServices
}

func (w *world) serverOf(all []*server, port uint16, six bool) *server {
	return all[slices.IndexFunc(all, func(s *server) bool { return s.port == port && s.six == six })]
}

func nameOfFamily(six bool) string { return map[bool]string{false: "IPv4", true: "IPv6"}[six] }

// TestLawExpectation: a helper of connection tracking that expects a client of one guarded port does not let it in to
// another, nor to an open port that leads there.
func TestLawExpectation(t *testing.T) {
	for _, way := range []string{"delivered", "redirect"} {
		t.Run(way, func(t *testing.T) {
			lawBackends(t, way, func(w *world) {
				w.rules(`table inet helper { ct helper ftp { type "ftp" protocol tcp
}
chain in { type filter hook prerouting priority 0; tcp dport 21 ct helper set "ftp"
}
}`)
				// A file server whose sessions are let in, and which announces a port for data.
				port := map[string]uint16{"delivered": 22, "redirect": 8022}[way]
				w.prepare(&lawState{}, Drop, long)
				w.guardToo("tcp/21")
				w.load(0)
				for _, six := range []bool{false, true} {
					w.allowPort("client", six, "tcp/21")
					control := w.announce(six, port)
					defer control.Close()
					conn, err := lab.Dial(w.client, netip.AddrPortFrom(addressOf("client", six), firstCase).String(),
						net.JoinHostPort(addressOf("gateway's other", six).String(), "21"), lab.Patience)
					w.must(err)
					defer conn.Close()
					w.must(conn.SetReadDeadline(time.Now().Add(lab.Patience)))
					read := func(line string) {
						_, err := io.ReadFull(conn, make([]byte, len(line)))
						w.must(err)
					}
					read("220 files\r\n")
					_, err = io.WriteString(conn, "PASV\r\n")
					w.must(err)
					read("227 Entering")
					from := netip.AddrPortFrom(addressOf("client", six), firstCase+1)
					data, err := w.attempt(from.String(), addressOf("gateway's other", six).String(), fmt.Sprint(port), silence)
					if err == nil {
						data.Close()
					}
					if err == nil || w.heard(from.Port(), w.serverOf(w.servers, 22, six)) {
						w.Errorf("%s: a client with a grant for port 21 only was let in to port 22, by port %d", nameOfFamily(six),
							port)
					}
				}
			})
		})
	}
}

// guardToo adds a port to the world's guard, which is not loaded yet.
func (w *world) guardToo(more string) {
	w.Helper()
	w.must(w.Firewall.Close())
	w.config.Guarded = append(w.config.Guarded, ports(more))
	w.site.Firewall = nil
	w.open()
}

func (w *world) allowPort(name string, six bool, port string) {
	w.Helper()
	now := time.Now()
	g := Grant{Client: "client", Service: port[4:], Source: addressOf(name, six), Ports: []service.Ports{ports(port)},
		Until: now.Add(long)}
	w.must(w.Grant(w.Context(), []Grant{g}, now))
}

// announce serves port 21, and announces to each client a port for data.
func (w *world) announce(six bool, port uint16) net.Listener {
	w.Helper()
	a := addressOf("gateway's other", six)
	text := fmt.Sprintf("229 Entering Extended Passive Mode (|||%d|)\r\n", port)
	if !six {
		b := a.As4()
		text = fmt.Sprintf("227 Entering Passive Mode (%d,%d,%d,%d,%d,%d)\r\n", b[0], b[1], b[2], b[3], port>>8, port&0xff)
	}
	var l net.Listener
	w.must(w.gw.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(a, 21).String())
		return err
	}))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// The helper parses a line that begins where another one ended.
			_, _ = io.WriteString(c, "220 files\r\n")
			_, _ = c.Read(make([]byte, 10))
			_, _ = io.WriteString(c, text)
			w.Cleanup(func() { c.Close() })
		}
	}()
	return l
}

// TestLawDestination: a grant for a port of one address does not open the same port of another.
func TestLawDestination(t *testing.T) {
	lawBackends(t, "routed to a listed machine", func(w *world) {
		for _, six := range []bool{false, true} {
			for _, aim := range []struct{ to, other string }{{"gateway's other", "behind"}, {"behind", "gateway's other"}} {
				for _, s := range w.visible() {
					w.aim(six, aim.to, aim.other, &s)
				}
			}
		}
	})
}

func (w *world) aim(six bool, to, other string, s *lawService) {
	w.Helper()
	w.prepare(&lawState{loaded: true}, Drop, long)
	now := time.Now()
	g := Grant{Client: "client", Service: "aimed", Source: addressOf("client", six),
		Ports: []service.Ports{{Proto: s.proto, Low: s.port, High: s.port}}, Until: now.Add(long)}
	if to == "behind" {
		g.To = []netip.Addr{addressOf(to, six)}
	}
	w.must(w.Grant(w.Context(), []Grant{g}, now))
	o := w.outlet(w.client, "vc", "vs")
	for i, name := range []string{to, other} {
		shape := shapeSYN
		if s.proto == service.UDP {
			shape = shapeUDP
		}
		port := uint16(firstCase + i)
		w.must(o.send(&packet{shape: shape, from: netip.AddrPortFrom(addressOf("client", six), port),
			to: netip.AddrPortFrom(addressOf(name, six), s.port), seq: lawSeq(port, 0)}))
		server := w.serverOf(map[bool][]*server{false: w.servers, true: w.beyond}[name == "behind"], s.port, six)
		if name == to {
			lab.Eventually(w.T, "a packet from a client with a grant", func() bool { return w.heard(port, server) })
			continue
		}
		w.flush()
		time.Sleep(silence) // another link than that of the mark
		if w.heard(port, server) {
			w.Errorf("%s: a grant for %v of the %s let in to that of the %s", nameOfFamily(six), s, to, name)
		}
	}
}

// TestLawLink: a link-local address means a different machine on each link, even in a flow that one of them has begun
// with a grant.
func TestLawLink(t *testing.T) {
	lawBackends(t, "delivered", func(w *world) {
		w.prepare(&lawState{loaded: true}, Drop, long)
		now := time.Now()
		var gs []Grant
		for _, s := range lawServices {
			gs = append(gs, Grant{Client: "client", Service: s.String(), Source: w.clientAddr("client's link-local", true),
				Ports: []service.Ports{{Proto: s.proto, Low: s.port, High: s.port}}, Until: now.Add(long)})
		}
		w.must(w.Grant(w.Context(), gs, now))
		o := w.outlet(w.client, "vc", "vs")
		for i, s := range w.visible() {
			server := w.serverOf(w.servers, s.port, true)
			sh := shapesOf(&s)[0]
			p := &packet{shape: sh, from: netip.AddrPortFrom(addressOf("client's link-local", true), uint16(firstCase+i)),
				to: netip.AddrPortFrom(addressOf("gateway, link-local", true), s.port), seq: 7}
			w.must(o.send(p))
			lab.Eventually(w.T, "a packet from a link-local client with a grant",
				func() bool { return w.heard(p.from.Port(), server) })
			if s.proto == service.UDP {
				w.answerOn("vs", server, p.from) // the flow is established
			}
			for _, next := range followUps(&s) {
				p.shape = next
				w.must(w.outlets[0].send(p))
				w.flush()
				if server.count.take(p.from.Port()) > 0 {
					w.Errorf("%v: %v from another link was delivered in the flow of a link-local client", &s, next)
				}
			}
			other := *p
			other.shape, other.from = sh, netip.AddrPortFrom(p.from.Addr(), uint16(firstCase+100+i))
			w.must(w.outlets[0].send(&other))
			w.flush()
			if server.count.take(other.from.Port()) > 0 {
				w.Errorf("%v: a grant for a link-local client is valid on another link", &s)
			}
		}
	})
}

func (w *world) answerOn(dev string, s *server, to netip.AddrPort) {
	w.Helper()
	index, _, err := w.gw.Interface(dev)
	w.must(err)
	a := &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port()), ZoneId: uint32(index)}
	w.must(unix.Sendto(s.fd, []byte(serverSays), 0, a))
}

// TestLawDialed: a process on the gateway has tried to connect from a guarded port without success. The intended peer
// may answer it, but does not get in to the server of that port.
func TestLawDialed(t *testing.T) {
	lawBackends(t, "delivered", func(w *world) {
		w.prepare(&lawState{loaded: true}, Drop, long)
		for i, six := range []bool{false, true} {
			for j, s := range lawServices[:2] {
				server := w.serverOf(w.servers, s.port, six)
				me := netip.AddrPortFrom(addressOf("stranger", six), uint16(firstCase+10*i+j))
				w.must(server.dial(me))
				p := &packet{shape: shapeSYN, from: me, to: netip.AddrPortFrom(addressOf("gateway", six), s.port),
					seq: lawSeq(me.Port(), 0)}
				w.must(w.outlets[0].send(p))
				w.flush()
				if w.heard(me.Port(), server) {
					w.Errorf("%s: %v: a SYN of a stranger's whom the host had tried to reach was delivered to the server",
						nameOfFamily(six), &s)
				}
			}
		}
	})
}
