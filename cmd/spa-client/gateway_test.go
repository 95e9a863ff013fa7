package main

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

func signalNamed(name string) os.Signal {
	if name == "TERM" {
		return syscall.SIGTERM
	}
	return os.Interrupt
}

// current is the last gateway that a script started.
type current struct{ gateway *testGateway }

type gatewayKey struct{}

func gatewayOf(ts *testscript.TestScript) *testGateway {
	return ts.Value(gatewayKey{}).(*current).gateway
}

// testGateway answers knocks on a loopback address but opens nothing.
type testGateway struct {
	status spa.Status
	drop   int           // packets without an answer; -1: all
	clock  time.Duration // ahead of the client's
	most   time.Duration // longest grant
	ports  []service.Ports
	again  time.Time // packets stamped up to then are too early
	noise  bool      // a forged datagram before every receipt
	tcpAt  string    // where it listens after the first grant; empty: nowhere

	fleet   *keys.Profile // the one of which this is a gateway; nil: none
	profile *keys.Profile
	client  *keys.Client
	conn    *net.UDPConn
	knocked chan struct{} // closed by the first packet

	mu     sync.Mutex
	knocks []spa.Knock
	tcp    net.Listener
}

// gatewayCommand is "gateway [OPTION=VALUE]...": it starts a gateway and writes its token to the file token. The
// options are those of set.
func gatewayCommand(ts *testscript.TestScript, neg bool, args []string) {
	key, id := keys.NewKey(), keys.NewID()
	g := &testGateway{status: spa.Granted, knocked: make(chan struct{}), most: time.Hour,
		ports:  []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
		client: &keys.Client{Name: "alice", ID: id, Key: key},
		profile: &keys.Profile{Name: "gw", Address: "127.0.0.1", ServerID: keys.NewServerID(), Gate: keys.NewGateKey(),
			Client: "alice", ID: id, Key: key, Services: map[string][]string{"ssh": {"tcp/22"}, "web": {"tcp/80", "tcp/443"}},
			Receipts: true}}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	ts.Check(err)
	g.conn = conn
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		g.set(ts, name, value)
	}
	g.profile.KnockPorts = []uint16{conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	if g.fleet != nil {
		g.fleet.KnockPorts, g.fleet.Services, g.fleet.Source = g.profile.KnockPorts, g.profile.Services, g.profile.Source
		g.fleet.Receipts = g.profile.Receipts
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.serve()
	}()
	ts.Defer(func() {
		conn.Close()
		<-done
		g.stopListening()
	})
	ts.Check(os.WriteFile(ts.MkAbs("token"), []byte(cmp.Or(g.fleet, g.profile).Token()+"\n"), 0o600))
	lines := g.profile.Words()
	ts.Check(os.WriteFile(ts.MkAbs("words"), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	page := "RECOVERY KEY of the gateway gw (127.0.0.1)\n\n"
	for i, line := range lines {
		page += fmt.Sprintf("%2d  %s\n", i+1, line)
	}
	page += "\nThese are the words in lines.\n"
	ts.Check(os.WriteFile(ts.MkAbs("page"), []byte(page), 0o600))
	ts.Setenv("PORT", strconv.Itoa(int(g.profile.KnockPorts[0])))
	ts.Value(gatewayKey{}).(*current).gateway = g
}

func (g *testGateway) set(ts *testscript.TestScript, name, value string) {
	var err error
	switch name {
	case "name":
		g.profile.Name = value
	case "fleet":
		g.ofFleet(ts, value)
	case "source":
		g.profile.Source = value
	case "recovery":
		g.profile.Name, g.profile.Recovery = "gw-door", true
	case "receipts":
		g.profile.Receipts, g.drop = false, -1
	case "services":
		g.profile.Services = nil
	case "early":
		var after time.Duration
		after, err = time.ParseDuration(value)
		g.again = time.Now().Add(after)
	case "noise":
		g.noise = true
	case "status":
		var n int
		n, err = strconv.Atoi(value)
		g.status = spa.Status(n)
	case "drop":
		g.drop, err = strconv.Atoi(value)
	case "clock":
		g.clock, err = time.ParseDuration(value)
	case "most":
		g.most, err = time.ParseDuration(value)
	case "listen":
		err = g.reserve(ts)
		switch value {
		case "now":
			g.listen()
		case "never":
			g.tcpAt = ""
		}
	default:
		ts.Fatalf("gateway: no option %s", name)
	}
	ts.Check(err)
}

// ofFleet makes it the gateway FLEET/GATEWAY. The other gateways that the token lists do not exist.
func (g *testGateway) ofFleet(ts *testscript.TestScript, name string) {
	fleet, gateway, _ := strings.Cut(name, "/")
	g.fleet = &keys.Profile{Name: fleet, Address: "example.net", Gate: keys.NewGateKey(), Client: "alice",
		Key: keys.NewKey(), Fleet: keys.NewFleetID(),
		Gateways: map[string]string{gateway: "127.0.0.1", "db1": "", "web9": "198.51.100.9:62202"}}
	p, err := g.fleet.Gateway(gateway)
	ts.Check(err)
	p.Services, p.Receipts = g.profile.Services, true
	g.profile, g.client.ID, g.client.Key = p, p.ID, p.Key
}

// reserve finds a TCP port on which nothing listens yet, and makes it ssh's. It avoids ephemeral ports: another program
// could get one in between.
func (g *testGateway) reserve(ts *testscript.TestScript) error {
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(20_000)))
	for try := 0; err != nil && try < 100; try++ {
		l, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(20_000)))
	}
	if err != nil {
		return err
	}
	g.tcpAt = l.Addr().String()
	port := netip.MustParseAddrPort(g.tcpAt).Port()
	g.ports = []service.Ports{{Proto: service.TCP, Low: port, High: port}}
	g.profile.Services["ssh"] = []string{g.ports[0].String()}
	return l.Close()
}

// listenSoon makes the port accept a moment after it was opened, like a service that starts slowly.
func (g *testGateway) listenSoon() {
	if g.tcpAt == "" {
		return
	}
	time.AfterFunc(150*time.Millisecond, g.listen)
}

// listen accepts connections, and answers on one after the other side has closed its half.
func (g *testGateway) listen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tcp != nil {
		return
	}
	l, err := net.Listen("tcp4", g.tcpAt)
	if err != nil {
		return
	}
	g.tcp = l
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				heard, _ := io.ReadAll(conn)
				fmt.Fprintf(conn, "heard %s", heard)
			}()
		}
	}()
}

func (g *testGateway) stopListening() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tcp != nil {
		g.tcp.Close()
	}
}

// Lookup knows one client.
func (g *testGateway) Lookup(id keys.ID) (keys.Credential, bool) {
	return keys.Credential{Client: *g.client, ID: id, Key: g.client.Key}, id == g.client.ID
}

// seen returns the knocks received so far.
func (g *testGateway) seen() []spa.Knock {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.knocks
}

func (g *testGateway) serve() {
	identity := &spa.Identity{Server: g.profile.ServerID, Gates: []spa.Gate{{Key: g.profile.Gate}},
		Window: 30 * time.Second}
	buf := make([]byte, 2048)
	for {
		n, from, err := g.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		k, err := spa.Open(buf[:n], identity, g, time.Now())
		if err != nil {
			continue
		}
		g.mu.Lock()
		if g.knocks = append(g.knocks, k); len(g.knocks) == 1 {
			close(g.knocked)
		}
		silent := g.drop < 0 || len(g.knocks) <= g.drop
		g.mu.Unlock()
		g.listenSoon()
		if silent {
			continue
		}
		if g.noise {
			g.conn.WriteToUDPAddrPort(buf[:n], from)
		}
		if receipt, err := spa.SealReceipt(g.receipt(k, from.Addr()), &k, g.profile.ServerID); err == nil {
			g.conn.WriteToUDPAddrPort(receipt, from)
		}
	}
}

func (g *testGateway) receipt(k spa.Knock, from netip.Addr) spa.Receipt {
	r := spa.Receipt{Status: g.status, Time: time.Now().Add(g.clock), Source: from.Unmap()}
	if g.status == spa.Granted && k.Type == spa.TypeClose {
		r.Status = spa.Closed
	}
	if !k.Time.After(g.again) {
		r.Status, r.Again = spa.ReasonTooEarly, g.again
	}
	if r.Status.Refused() {
		return r
	}
	for range k.Services {
		granting := spa.Granting{Ports: g.ports}
		if r.Status == spa.Granted {
			granting.For = min(g.most, 30*time.Second)
			if k.For > 0 {
				granting.For = min(g.most, k.For)
			}
		}
		r.Services = append(r.Services, granting)
	}
	return r
}

// sentCommand is "sent N" or "sent N+": it checks that the gateway received N packets, or at least N, all for one
// request and all different. A client that is answered late sends more.
func sentCommand(ts *testscript.TestScript, neg bool, args []string) {
	count, more := strings.CutSuffix(args[0], "+")
	want, err := strconv.Atoi(count)
	ts.Check(err)
	g := gatewayOf(ts)
	for deadline := time.Now().Add(lab.Patience); len(g.seen()) < want && time.Now().Before(deadline); {
		<-time.After(time.Millisecond) // packets may not have been read yet
	}
	knocks := g.seen()
	if len(knocks) < want || len(knocks) > want && !more {
		ts.Fatalf("the gateway got %d packets, want %s", len(knocks), args[0])
	}
	nonces := make(map[spa.Nonce]bool)
	for _, k := range knocks {
		nonces[k.Nonce] = true
		if k.ID != knocks[0].ID || k.Digest() != knocks[0].Digest() {
			ts.Fatalf("the packets are several requests")
		}
	}
	if len(nonces) != len(knocks) {
		ts.Fatalf("a packet was sent twice")
	}
}
