package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// The counter-law: a guard that drops everything breaks no law. So the traffic that must pass is tried too: clients
// with a grant, flows that the host and the machines behind begin themselves, and transit.

// counter tries what must pass by a way.
func (w *world) counter(closed Closed, r *lawReport) {
	w.Helper()
	w.prepare(&lawState{loaded: true, granted: true}, closed, long)
	stop := w.pump()
	defer stop()
	for _, six := range []bool{false, true} {
		c := &counter{world: w, six: six, report: r}
		c.granted()
		c.own()
		c.others()
	}
}

// pump makes the servers answer until stop is called.
func (w *world) pump() (stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for see := newSight(); ctx.Err() == nil; time.Sleep(4 * time.Millisecond) {
			for _, s := range w.allServers() {
				s.look(see)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

type counter struct {
	*world
	six      bool
	report   *lawReport
	lastPort int
}

func (c *counter) address(name string) string { return addressOf(name, c.six).String() }

func (c *counter) at(name string, port uint16) string {
	return netip.AddrPortFrom(addressOf(name, c.six), port).String()
}

// passes records a failure of something that must pass.
func (c *counter) passes(what string, err error) {
	c.report.passed(err == nil, fmt.Sprintf("%s, %s, %s: %s: %v", c.way.name, c.kind.name, nameOfFamily(c.six), what, err))
}

// talk connects and hears an echo.
func (c *counter) talk(what string, from *lab.Host, laddr, to string) {
	if _, err := netip.ParseAddrPort(laddr); err != nil {
		// A port that no case uses.
		c.lastPort++
		laddr = net.JoinHostPort(laddr, strconv.Itoa(3000+c.lastPort))
	}
	conn, err := lab.Dial(from, laddr, to, counterPatience)
	if err == nil {
		err = lab.Echoes(conn, "is anybody there?", counterPatience)
		hangUp(conn)
	}
	c.passes(what, err)
}

// hangUp ends a connection so that its ports can be reused at once.
func hangUp(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// counterPatience is shorter than lab.Patience: something broken is broken in many worlds.
const counterPatience = 10 * time.Second

// ask sends a datagram and gets an answer.
func (c *counter) ask(what string, from *lab.Host, laddr, to string) {
	conn, err := listenUDP(from, laddr)
	if err == nil {
		defer conn.Close()
		err = exchange(conn, netip.MustParseAddrPort(to))
	}
	c.passes(what, err)
}

// listenUDP opens a socket. It retries: a process that is just starting may still hold a copy of a closed one.
func listenUDP(h *lab.Host, laddr string) (*net.UDPConn, error) {
	a := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(laddr))
	var conn *net.UDPConn
	var err error
	for deadline := time.Now().Add(counterPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		err = h.Do(func() (err error) { conn, err = net.ListenUDP("udp", a); return err })
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return conn, err
}

func exchange(conn *net.UDPConn, to netip.AddrPort) error {
	if _, err := conn.WriteToUDPAddrPort([]byte("hello"), to); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(counterPatience))
	_, _, err := conn.ReadFromUDPAddrPort(make([]byte, 100))
	return err
}

// granted is what the client may do, and what all hosts may.
func (c *counter) granted() {
	for _, s := range lawServices {
		for i, port := range []uint16{s.port, s.front} {
			if port == s.front && !c.way.fronts {
				continue
			}
			what := fmt.Sprintf("a client with a grant for %v/%d", s.proto, port)
			if s.proto.String() == "tcp" {
				c.talk(what, c.client, c.address("client"), c.at("gateway's other", port))
			} else {
				c.ask(what, c.client, c.at("client", uint16(4010+i)), c.at("gateway's other", port))
			}
		}
	}
	c.talk("an open port", c.client, c.address("client"), c.at("gateway's other", openPort))
	if slices.Contains(c.way.listed, "behind") && !c.way.bridged {
		c.talk("a client with a grant for a machine behind", c.client, c.address("client"), c.at("behind", 22))
	}
	c.refused()
}

// refused is an ICMP error about an admitted flow: it reports to the server that its client has gone.
func (c *counter) refused() {
	i := slices.IndexFunc(c.servers, func(s *server) bool { return s.port == 5300 && s.six == c.six })
	before := c.servers[i].refused.Load()
	udp, err := listenUDP(c.client, c.at("client", 4001))
	c.must(err)
	err = exchange(udp, netip.MustParseAddrPort(c.at("gateway's other", 5300)))
	udp.Close()
	if err == nil {
		err = eventually(func() bool { // the client's kernel sends only so many errors a second
			c.servers[i].speak(netip.MustParseAddrPort(c.at("client", 4001)))
			time.Sleep(50 * time.Millisecond)
			return c.servers[i].refused.Load() > before
		})
	}
	c.passes("an ICMP error about an admitted flow", err)
}

func eventually(ok func() bool) error {
	for deadline := time.Now().Add(counterPatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited too long")
		}
	}
	return nil
}

// own is what the gateway begins itself, even from guarded ports.
func (c *counter) own() {
	c.talk("the host's own connection from a guarded port", c.gw, c.at("gateway's other", 2200), c.at("client", 7000))
	c.ask("the host's own question from a guarded port", c.gw, c.at("gateway's other", 123), c.at("client", 7001))
	for _, to := range []string{"loopback", "gateway", "gateway's other"} {
		c.talk("the host itself, to its "+to, c.gw, c.address(to), c.at(to, 22))
	}
	c.passes("an ICMP error about the host's own flow", c.ownRefused())
	c.passes("the host's own multicast on an open port", c.multicast())
}

func (c *counter) ownRefused() error {
	var conn net.Conn
	err := c.gw.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.at("gateway's other", 123)))}
		conn, err = d.Dial("udp", c.at("client", 7999))
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(counterPatience))
	if _, err = conn.Read(make([]byte, 10)); strings.Contains(fmt.Sprint(err), syscall.ECONNREFUSED.Error()) {
		return nil
	}
	return fmt.Errorf("got %v, want a refused connection", err)
}

// multicast is how programs on one host find each other: what they send loops back by the interface, from the host's
// own address.
func (c *counter) multicast() error {
	group, family, bindTo := unix.Sockaddr(&unix.SockaddrInet4{Port: openPort, Addr: [4]byte{224, 0, 0, 251}}),
		unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: openPort})
	index, _, err := c.gw.Interface("vs")
	if err != nil {
		return err
	}
	if c.six {
		group = &unix.SockaddrInet6{Port: openPort, Addr: netip.MustParseAddr("ff02::fb").As16(), ZoneId: uint32(index)}
		family, bindTo = unix.AF_INET6, &unix.SockaddrInet6{Port: openPort}
	}
	return c.gw.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := bind(fd, bindTo); err != nil {
			return err
		}
		if c.six {
			g := netip.MustParseAddr("ff02::fb").As16()
			err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: g,
				Interface: uint32(index)})
		} else {
			m := &unix.IPMreqn{Multiaddr: [4]byte{224, 0, 0, 251}, Ifindex: int32(index)}
			if err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, m); err == nil {
				err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, m)
			}
		}
		if err != nil {
			return err
		}
		if err := unix.Sendto(fd, []byte("hello"), 0, group); err != nil {
			return err
		}
		return eventually(func() bool {
			_, _, err := unix.Recvfrom(fd, make([]byte, 10), 0)
			return err == nil
		})
	})
}

// others is what the gateway only forwards.
func (c *counter) others() {
	if c.way.routes() {
		c.talk("a connection of the machine behind, from a guarded port", c.inner, c.at("behind", 2200), c.at("client", 7000))
		c.ask("a question of the machine behind, from a guarded port", c.inner, c.at("behind", 123), c.at("client", 7001))
		if !slices.Contains(c.way.listed, "behind") {
			c.talk("a connection to a machine that is not guarded", c.client, c.at("client", 2200), c.at("behind", 22))
			c.ask("a question to a machine that is not guarded", c.client, c.at("client", 123), c.at("behind", 5300))
		}
	}
	if c.way.bridged && len(c.way.listed) == 0 {
		c.passes("a bridged packet for another machine", c.bridged())
	}
}

// bridged sends a frame past the gateway to the machine that is its neighbour.
func (c *counter) bridged() error {
	to := netip.MustParseAddr(map[bool]string{false: "203.0.113.5", true: "2001:db8:e::5"}[c.six])
	_, mac, err := c.inner.Interface("eth0")
	if err != nil {
		return err
	}
	past := c.outlet(c.evil, "ev", "br0")
	copy(past.header, mac)
	const port = firstCase - 1
	p := &packet{shape: shapeSYN, from: netip.AddrPortFrom(addressOf("stranger", c.six), port),
		to: netip.AddrPortFrom(to, 22), seq: 1}
	i := slices.IndexFunc(c.beyond, func(s *server) bool { return s.port == 22 && s.six == c.six })
	if c.beyond[i].count == nil {
		return nil // nothing is counted here
	}
	if err := past.send(p); err != nil {
		return err
	}
	return eventually(func() bool { return c.beyond[i].count.take(port) > 0 })
}

// openServers are the servers of unguarded ports.
func (w *world) openServers() {
	w.Helper()
	for _, s := range []struct {
		host *lab.Host
		port uint16
	}{{w.gw, openPort}, {w.client, 7000}} {
		_, err := lab.EchoServer(s.host, fmt.Sprintf(":%d", s.port))
		w.must(err)
	}
	udp := w.udp(w.client, "[::]:7001")
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			udp.WriteToUDPAddrPort(b[:n], from)
		}
	}()
}
