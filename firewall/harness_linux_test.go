package firewall

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) {
	Helper()
	// Parallel tests wait most of the time, whatever the number of processors.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	lab.Main(m)
}

// silence is how long a test waits for an answer that must not come. Tests wait for what must come with lab.Patience.
const silence = 150 * time.Millisecond

// long is the life of grants that must not end while a test runs or waits for something else to end.
const long = time.Hour

// sides are the addresses of a test's hosts, for IPv4 or IPv6.
type sides struct {
	name                     string
	alice, stranger, gateway string
}

var bothFamilies = []sides{
	{"IPv4", "192.0.2.2", "192.0.2.3", "192.0.2.1"},
	{"IPv6", "2001:db8::2", "2001:db8::3", "2001:db8::1"},
}

// site is a client, a gateway with an echo server on the guarded port 22, and a guard.
type site struct {
	*testing.T
	client, gw *lab.Host
	config     Config
	kind       kind
	*Firewall
}

// newSite makes a site without a guard.
func newSite(t *testing.T, change func(*Config)) *site {
	t.Helper()
	client, gw := lab.Pair(t)
	s := &site{T: t, client: client, gw: gw}
	s.must(client.AddAddr("vc", "2001:db8::3/64"))
	s.config = Config{
		Guarded: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
		Knock:   []KnockPort{{Port: 62201}},
		State:   t.TempDir(),
		knobs:   knobs{slots: 64, plain: true}, // see withOwner
	}
	if change != nil {
		change(&s.config)
	}
	s.serve(":22")
	return s
}

// guarded makes a site with the guard loaded.
func guarded(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := newSite(t, change)
	s.open()
	s.load(0)
	return s
}

func (s *site) must(err error) {
	s.Helper()
	lab.Must(s, err)
}

// open opens a Firewall like a daemon that starts. It closes an earlier one, as when its process ends.
func (s *site) open() {
	s.Helper()
	if s.Firewall != nil {
		s.must(s.Firewall.Close())
	}
	s.must(s.gw.Do(func() (err error) {
		s.Firewall, err = New(s.config, slog.New(slog.DiscardHandler))
		return err
	}))
	fw := s.Firewall
	s.Cleanup(func() { fw.Close() })
}

func (s *site) load(confirm time.Duration) {
	s.Helper()
	s.must(s.gw.Do(func() error { return s.Load(s.Context(), confirm, time.Now()) }))
}

// watch runs Watch until the test ends, and returns a channel for its error.
func (s *site) watch() <-chan error {
	ctx, cancel := context.WithCancel(s.Context())
	ended := make(chan error, 1)
	fw := s.Firewall
	go func() { ended <- fw.Watch(ctx) }()
	s.Cleanup(cancel)
	return ended
}

// watchUntil runs Watch until stop is called.
func (s *site) watchUntil() (stop func()) {
	ctx, cancel := context.WithCancel(s.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Firewall.Watch(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// ends checks the error with which Watch returns on its own.
func (s *site) ends(ended <-chan error, want error) {
	s.Helper()
	late := time.NewTimer(lab.Patience)
	defer late.Stop()
	select {
	case err := <-ended:
		if !errors.Is(err, want) {
			s.Fatalf("got %v from Watch, want %v", err, want)
		}
	case <-late.C:
		s.Fatalf("Watch still runs, want %v", want)
	}
}

func (s *site) serve(addr string) *lab.Echo {
	s.Helper()
	e := lab.Value(lab.EchoServer(s.gw, addr))(s)
	return e
}

// accepting returns the server's end of a connection.
type accepting func(client net.Conn) net.Conn

// listen listens on the gateway.
func (s *site) listen(addr string) accepting {
	s.Helper()
	return s.listenOn(s.gw, addr)
}

func (s *site) listenOn(h *lab.Host, addr string) accepting {
	s.Helper()
	var l net.Listener
	s.must(h.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	s.Cleanup(func() { l.Close() })
	return func(client net.Conn) net.Conn {
		s.Helper()
		s.must(l.(*net.TCPListener).SetDeadline(time.Now().Add(lab.Patience)))
		for {
			c := lab.Value(l.Accept())(s)
			s.Cleanup(func() { c.Close() })
			// Attempts that only checked whether the port is open wait here too.
			if c.RemoteAddr().String() == client.LocalAddr().String() {
				return c
			}
		}
	}
}

// speaks checks that the client hears a server that it did not ask.
func (s *site) speaks(server, client net.Conn) {
	s.Helper()
	_, err := server.Write([]byte("news"))
	s.must(err)
	if !hears(client, lab.Patience) {
		s.Fatalf("the client of %v does not hear its server", server.LocalAddr())
	}
}

// grant grants tcp/22 to the source on behalf of the client.
func (s *site) grant(client, source string, last time.Duration) {
	s.Helper()
	now := time.Now()
	g := sshGrant(client, source, 0)
	g.Until = now.Add(last)
	s.must(s.Grant(s.Context(), []Grant{g}, now))
}

func sshGrant(client, source string, last time.Duration) Grant {
	return Grant{
		Client: client, Service: "ssh", Source: netip.MustParseAddr(source),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
		Until: time.Now().Add(last),
	}
}

// dial tries to connect with lab.Patience.
func (s *site) dial(from, to, port string) (net.Conn, error) {
	return lab.Dial(s.client, from, net.JoinHostPort(to, port), lab.Patience)
}

// connect makes a connection that must succeed.
func (s *site) connect(from, to, port string) net.Conn {
	s.Helper()
	c, err := s.dial(from, to, port)
	if err != nil {
		s.Fatalf("got %v, want a connection", err)
	}
	s.Cleanup(func() { c.Close() })
	s.echoes(c)
	return c
}

func (s *site) echoes(c net.Conn) {
	s.Helper()
	if err := lab.Echoes(c, "is anybody there?", lab.Patience); err != nil {
		s.Fatalf("got %v, want an echo", err)
	}
}

// dead checks that a connection returns nothing.
func (s *site) dead(c net.Conn) {
	s.Helper()
	if err := lab.Echoes(c, "is anybody there?", silence); err == nil {
		s.Fatal("the session is alive")
	}
}

// dark checks that a port is silent.
func (s *site) dark(from, to, port string) {
	s.Helper()
	c, err := s.attempt(from, to, port, silence)
	if err == nil {
		c.Close()
		s.Fatalf("%s connected to %s port %s, want silence", from, to, port)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		s.Fatalf("%s was refused by %s port %s, want silence", from, to, port)
	}
}

func (s *site) isOpen(from, to, port string) bool {
	c, err := s.attempt(from, to, port, silence)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// udp opens a UDP socket of a host, and listens if from has a port.
func (s *site) udp(h *lab.Host, from string) *net.UDPConn {
	s.Helper()
	var c *net.UDPConn
	s.must(h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)))
		return err
	}))
	s.Cleanup(func() { c.Close() })
	return c
}

// gets reports whether a datagram arrives at the socket in time.
func (s *site) gets(c *net.UDPConn, within time.Duration) bool {
	return reads(c, make([]byte, 2048), 1, within) > 0
}

func (s *site) send(c *net.UDPConn, to string) {
	s.Helper()
	_, err := c.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(to))
	s.must(err)
}

// another changes the gateway's rule set as another tool would.
func (s *site) another(do func(*nft.Conn)) {
	s.Helper()
	s.anotherOn(s.gw, do)
}

func (s *site) anotherOn(h *lab.Host, do func(*nft.Conn)) {
	s.Helper()
	s.must(h.Do(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		do(c)
		return c.Flush()
	}))
}

// flushRuleset empties the tables that contain the guard, as another tool does.
func (s *site) flushRuleset() {
	s.Helper()
	if s.kind.legacy {
		for _, program := range []string{"iptables", "ip6tables"} {
			tables := []string{"raw", "mangle"}
			if len(s.config.Forwards) > 0 {
				tables = append(tables, "nat")
			}
			for _, table := range tables {
				s.program(program, "-w", lockWait, "-t", table, "-F")
			}
		}
		return
	}
	s.another((*nft.Conn).FlushRuleset)
}

// chainOf adds a chain of another tool's table, with one rule.
func chainOf(c *nft.Conn, kind nft.ChainType, hook *nft.ChainHook, priority nft.ChainPriority, es ...expr.Any) {
	t := c.AddTable(&nft.Table{Name: "another", Family: nft.TableFamilyINet})
	chain := nftables.Hooked(&nft.Chain{Table: t, Name: "another"}, hook, priority)
	chain.Type = kind
	c.AddRule(&nft.Rule{Table: t, Chain: c.AddChain(chain), Exprs: es})
}
