package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

var (
	gate4   = netip.MustParseAddr("192.0.2.1")
	gate6   = netip.MustParseAddr("2001:db8::1")
	public4 = netip.MustParseAddr("8.8.4.4") // routable, as documentation addresses are not
	public6 = netip.MustParseAddr("2a00::4")
	private = netip.MustParseAddr("10.0.0.2")
	unique6 = netip.MustParseAddr("fd00::2")
)

// gateway opens packets as a server does and answers as its test says.
type gateway struct {
	t       *testing.T
	profile *keys.Profile
	client  *keys.Client
	clock   time.Duration // ahead of the client's
	again   time.Time     // sent with ReasonTooEarly
	over    bool          // its grants are over when it answers
	once    bool          // its grants are for one connection
	// decide returns the answer to the n-th packet that authenticates, counted from 0 over all families. No status:
	// silence.
	decide func(k spa.Knock, to netip.AddrPort, n int) spa.Status

	mu     sync.Mutex
	knocks []spa.Knock
	to     []netip.AddrPort
	at     []time.Time
}

func newGateway(t *testing.T) *gateway {
	key, id := keys.NewKey(), keys.NewID()
	return &gateway{
		t:      t,
		client: &keys.Client{Name: "alice", ID: id, Key: key, Allow: []string{"ssh"}},
		profile: &keys.Profile{Name: "gw", Address: gate4.String(), KnockPorts: []uint16{62201},
			ServerID: keys.NewServerID(), Gate: keys.NewGateKey(), Client: "alice", ID: id, Key: key,
			Services: map[string][]string{"ssh": {"tcp/22"}, "vpn": {"udp/51820"}}, Receipts: true},
		decide: func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.Granted },
	}
}

// Lookup knows one client.
func (g *gateway) Lookup(id keys.ID) (keys.Credential, bool) {
	return keys.Credential{Client: *g.client, ID: id, Key: g.client.Key}, id == g.client.ID
}

// receive takes a packet and returns the receipt, or nil.
func (g *gateway) receive(packet []byte, to netip.AddrPort) []byte {
	identity := &spa.Identity{Server: g.profile.ServerID, Gates: []spa.Gate{{Key: g.profile.Gate}}, Window: time.Hour}
	k, err := spa.Open(packet, identity, g, time.Now())
	if err != nil {
		g.t.Errorf("the gateway cannot open a packet: %v", err)
		return nil
	}
	g.mu.Lock()
	n := len(g.knocks)
	g.knocks, g.to, g.at = append(g.knocks, k), append(g.to, to), append(g.at, time.Now())
	g.mu.Unlock()
	status := g.decide(k, to, n)
	if status == 0 {
		return nil
	}
	return g.receipt(k, status)
}

func (g *gateway) receipt(k spa.Knock, status spa.Status) []byte {
	r := spa.Receipt{Status: status, Time: time.Now().Add(g.clock), Source: netip.MustParseAddr("203.0.113.7"),
		Again: g.again}
	for range k.Services {
		granting := spa.Granting{Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}, Once: g.once}
		if status == spa.Granted && !g.over {
			granting.For = 30 * time.Second
		}
		if !status.Refused() {
			r.Services = append(r.Services, granting)
		}
	}
	sealed, err := spa.SealReceipt(r, &k, g.profile.ServerID)
	if err != nil {
		g.t.Errorf("sealing a receipt: %v", err)
	}
	return sealed
}

// seen returns the knocks received so far.
func (g *gateway) seen() ([]spa.Knock, []netip.AddrPort, []time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.knocks, g.to, g.at
}

// fakeNet is a network without an operating system, for synthetic time.
type fakeNet struct {
	hosts map[string][]netip.Addr
	route map[netip.Addr]netip.Addr // gateway to local address; no entry: no route
	own   []netip.Addr              // local addresses
	// udp is called for each packet, on the sender's goroutine.
	udp func(c *fakeConn, packet []byte, to netip.AddrPort) error
	tcp func(local netip.Addr, to netip.AddrPort) error

	changes chan struct{}
	polled  <-chan struct{} // instead of changes

	mu      sync.Mutex
	bound   []netip.Addr
	dialled []*fakeTCP
	lookups int
}

// fakes joins a gateway and a client by a network without loss.
func fakes(t *testing.T) (*gateway, *fakeNet) {
	g := newGateway(t)
	n := &fakeNet{
		route: map[netip.Addr]netip.Addr{gate4: private, gate6: unique6},
		own:   []netip.Addr{private, unique6, public4, public6},
		udp: func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			if receipt := g.receive(packet, to); receipt != nil {
				c.deliver(receipt, nil)
			}
			return nil
		},
	}
	return g, n
}

func (n *fakeNet) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	n.lookups++
	if host == "slow.example.net" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if n.hosts[host] == nil {
		return nil, errors.New("no such host")
	}
	return n.hosts[host], nil
}

// move puts the machine into another network, and signals that.
func (n *fakeNet) move(route map[netip.Addr]netip.Addr) {
	n.mu.Lock()
	n.route = route
	n.mu.Unlock()
	n.changes <- struct{}{}
}

func (n *fakeNet) Local(to netip.AddrPort) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	local, ok := n.route[to.Addr()]
	if !ok {
		return netip.Addr{}, errors.New("network is unreachable")
	}
	return local, nil
}

func (n *fakeNet) Listen(_ context.Context, local netip.Addr) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ok := local.IsUnspecified()
	for _, own := range n.own {
		ok = ok || own == local
	}
	if !ok {
		return nil, errors.New("cannot assign requested address")
	}
	n.bound = append(n.bound, local)
	return &fakeConn{net: n, in: make(chan delivery, 10_000), closed: make(chan struct{})}, nil
}

func (n *fakeNet) Dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	err := n.tcp(local, to)
	if errors.Is(err, errHangs) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	here, there := net.Pipe()
	there.Close()
	c := &fakeTCP{Conn: here, to: to}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialled = append(n.dialled, c)
	return c, nil
}

// errHangs is the error of a port that does not answer a SYN.
var errHangs = errors.New("no answer")

// fakeTCP is a connection of a fakeNet.
type fakeTCP struct {
	net.Conn
	to     netip.AddrPort
	closed atomic.Bool
}

func (c *fakeTCP) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// wantOpen checks that only one connection is still open.
func (n *fakeNet) wantOpen(t *testing.T, only net.Conn) {
	t.Helper()
	for _, c := range n.dialled {
		if c.closed.Load() == (net.Conn(c) == only) {
			t.Errorf("the connection to %v: closed is %v", c.to, c.closed.Load())
		}
	}
}

type delivery struct {
	data []byte
	err  error
	from netip.AddrPort
}

// fakeConn is a UDP socket of a fakeNet.
type fakeConn struct {
	net.PacketConn
	net    *fakeNet
	in     chan delivery
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	deadline time.Time
	reads    int
}

// deliver puts a datagram or an error into the socket.
func (c *fakeConn) deliver(data []byte, err error) { c.in <- delivery{data: data, err: err} }

func (c *fakeConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.mu.Lock()
	c.reads++
	timer := time.NewTimer(time.Until(c.deadline))
	c.mu.Unlock()
	defer timer.Stop()
	select {
	case <-c.closed:
		return 0, nil, net.ErrClosed
	default:
	}
	select {
	case d := <-c.in:
		return copy(b, d.data), net.UDPAddrFromAddrPort(d.from), d.err
	case <-timer.C:
		return 0, nil, os.ErrDeadlineExceeded
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *fakeConn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	err := c.net.udp(c, append([]byte(nil), b...), to.(*net.UDPAddr).AddrPort())
	return len(b), err
}

func (c *fakeConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *fakeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

var ssh = []service.Service{{Name: "ssh"}}

// open is the command of most tests.
func open() Command { return Command{Type: spa.TypeOpen, Services: ssh} }

func mustPrepare(t *testing.T, g *gateway, n *fakeNet, c Command) *Plan {
	t.Helper()
	plan := lab.Value(prepare(t.Context(), g.profile, c, n))(t)
	return plan
}

// knockOnce expects exactly one answer.
func knockOnce(t *testing.T, plan *Plan) Answer {
	t.Helper()
	var answers []Answer
	for a := range plan.Knock(t.Context()) {
		answers = append(answers, a)
	}
	if len(answers) != 1 {
		t.Fatalf("got %d answers, want 1: %+v", len(answers), answers)
	}
	return answers[0]
}

func (n *fakeNet) Changes() (<-chan struct{}, func()) {
	if n.polled != nil {
		return n.polled, func() {}
	}
	return n.changes, func() {}
}
