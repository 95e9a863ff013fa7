package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestToken: the token contains what the file says about the gateway.
func TestToken(t *testing.T) {
	g := newGateway(t)
	g.set("", "name", `"office"`)
	g.set("", "address", `"gw.example.net"`)
	g.set("", "knock_ports", `[5000, { port = 443, shared = true }]`)
	g.set("", "receipts", `false`)
	g.set("", "server_id", `"`+strings.Repeat("ab", 16)+`"`)
	g.set("service.ssh", "ports", `["tcp/22", "tcp/60000-60010"]`)
	p := g.enrol("bob", "ssh,tcp/22")
	if p.Name != "office" || p.Address != "gw.example.net" || p.Receipts ||
		p.ServerID.String() != strings.Repeat("ab", 16) {
		t.Errorf("the token says %s, %s, %v, %v", p.Name, p.Address, p.Receipts, p.ServerID)
	}
	if !slices.Equal(p.KnockPorts, []uint16{5000, 443}) {
		t.Errorf("the token has the knock ports %v", p.KnockPorts)
	}
	if got := fmt.Sprint(p.Services); got != "map[ssh:[tcp/22 tcp/60000-60010]]" {
		t.Errorf("the token has the services %s", got)
	}
}

// TestServerID: a packet for the gateway's former id is refused.
func TestServerID(t *testing.T) {
	g := newGateway(t)
	alice := sender(g.profile())
	now := keys.NewServerID()
	g.set("", "server_id", `"`+now.String()+`"`)
	g.start()
	if receipt := g.exchange("192.0.2.2", g.seal(request(), alice), alice, silence); receipt != nil {
		t.Errorf("answered: %v", receipt.Status)
	}
	alice.Server = now
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
}

// answers reports whether alice's knock from an address of a host at a port of the gateway is answered.
func (g *gateway) answers(on *lab.Host, from, to string, within time.Duration) bool {
	g.t.Helper()
	var conn *net.UDPConn
	lab.Must(g.t, on.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)))
		return err
	}))
	defer conn.Close()
	alice := sender(g.profile())
	packet := g.seal(request(), alice)
	if _, err := conn.WriteToUDPAddrPort(packet, netip.MustParseAddrPort(to)); err != nil {
		g.t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(within))
	var buf [2048]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return false
	}
	_, err = spa.OpenReceipt(buf[:n], packet, alice)
	return err == nil
}

// TestKnockPorts: the server hears knocks on the ports in the file, and only there.
func TestKnockPorts(t *testing.T) {
	g := newGateway(t)
	g.set("", "knock_ports", `[5000, 53]`)
	g.start()
	for port, want := range map[string]bool{"5000": true, "53": true, "62201": false} {
		if got := g.answers(g.client, "192.0.2.2", "192.0.2.1:"+port, wait(want)); got != want {
			t.Errorf("a knock at %s is answered: %v, want %v", port, got, want)
		}
	}
}

// TestWindow: the file says how far a stamp may be off, in both directions. The server sees a packet later than it was
// stamped, on a busy machine by seconds.
func TestWindow(t *testing.T) {
	for window, ages := range map[string]map[time.Duration]bool{
		"20s": {0: true, 5 * time.Second: true, -15 * time.Second: true, 21 * time.Second: false, -29 * time.Second: false},
		"2m":  {0: true, time.Minute: true, -100 * time.Second: true, 121 * time.Second: false, -140 * time.Second: false},
	} {
		g := newGateway(t)
		g.set("", "window", `"`+window+`"`)
		g.start()
		alice := sender(g.profile())
		for age, want := range ages {
			r := request()
			r.Time = time.Now().Add(-age)
			receipt := g.exchange("192.0.2.2", g.seal(r, alice), alice, wait(want))
			if got := receipt != nil; got != want {
				t.Errorf("window %s, %v old: answered %v, want %v\n%s", window, age, got, want, g.server.log())
			}
		}
	}
}

// TestState: journal, ledger and lock are where the file says, and are used from there after kill -9.
func TestState(t *testing.T) {
	g := newGateway(t)
	state := t.TempDir()
	lab.Must(t, os.Rename(filepath.Join(g.dir, "journal"), filepath.Join(state, "journal")))
	g.set("", "state", `"`+state+`"`)
	g.set("audit", "file", `"decisions.jsonl"`)
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	packet := g.seal(long(), alice)
	g.wantReceipt("192.0.2.2", packet, alice, spa.Granted)
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after kill -9")
	if receipt := g.exchange("192.0.2.2", packet, alice, silence); receipt != nil {
		t.Errorf("a copy is answered after kill -9: %v", receipt.Status)
	}
	for _, name := range []string{"journal", "grants", "lock", "decisions.jsonl"} {
		if _, err := os.Stat(filepath.Join(state, name)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(g.dir, name)); err == nil {
			t.Errorf("%s is beside server.toml", name)
		}
	}
}

// TestAuditFile: decisions are written where the file says.
func TestAuditFile(t *testing.T) {
	g := newGateway(t)
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	g.set("audit", "file", `"`+path+`"`)
	g.start()
	g.mustOpen()
	data, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(data), `"verdict":"granted"`) {
		t.Errorf("got %q and %v", data, err)
	}
	// spa-keygen wrote there that it made alice, before the file said anything.
	if data, _ := os.ReadFile(filepath.Join(g.dir, "audit.jsonl")); strings.Contains(string(data), `"verdict"`) {
		t.Error("decisions are where they would be if the file said nothing")
	}
}

// TestCaptureInterfaces: if interfaces are named, knocks are heard only there.
func TestCaptureInterfaces(t *testing.T) {
	g, inside := newGatewayWithLAN(t)
	g.set("capture", "interfaces", `["lan"]`)
	g.start()
	if !g.answers(inside, "198.51.100.2", "198.51.100.1:62201", lab.Patience) {
		t.Errorf("not answered on the interface that is named\n%s", g.server.log())
	}
	if g.answers(g.client, "192.0.2.2", "192.0.2.1:62201", silence) {
		t.Error("answered on another")
	}
}

// TestMark: sessions through a grant carry the bit of the connection mark that the file names.
func TestMark(t *testing.T) {
	for set, want := range map[string]string{"": "mark=536870912 ", "0x00000400": "mark=1024 "} {
		g := newGateway(t)
		if set != "" {
			g.set("firewall", "mark", set)
		}
		g.serve(":22")
		g.start()
		g.mustOpen("--source", "192.0.2.2")
		_, err := g.session("192.0.2.2", "192.0.2.1:22", lab.Patience)
		lab.Must(t, err)
		flow := ""
		lab.Eventually(t, "the session to be established for the gateway, too", func() bool {
			flow = regexp.MustCompile(`(?m)^.*ESTABLISHED src=192\.0\.2\.2 dst=192\.0\.2\.1 sport=\d+ ` +
				`dport=22 .*$`).FindString(g.flows())
			return flow != ""
		})
		if !strings.Contains(flow, want) {
			t.Errorf("mark = %s: the session is %q, want it to have %s", set, flow, want)
		}
	}
}

// flows returns the gateway's tracked connections.
func (g *gateway) flows() string {
	g.t.Helper()
	var flows []byte
	lab.Must(g.t, g.host.Do(func() (err error) {
		flows, err = os.ReadFile("/proc/thread-self/net/nf_conntrack")
		return err
	}))
	return string(flows)
}

// TestAddresses: an address behind the gateway is guarded if a service lists it, and only then.
func TestAddresses(t *testing.T) {
	g, inside := newGatewayWithLAN(t)
	lab.Must(t, inside.Route("192.0.2.0/24", "198.51.100.1"))
	lab.Must(t, g.client.Route("198.51.100.0/24", "192.0.2.1"))
	lab.Must(t, g.host.Forward())
	lab.Must(t, inside.AddAddr("vi", "198.51.100.3/24"))
	_, err := lab.EchoServer(inside, ":22")
	lab.Must(t, err)
	g.set("service.ssh", "addresses", `["198.51.100.2", "2001:db8:1::2"]`)
	g.start()
	g.wantDark("192.0.2.2", "198.51.100.2:22", "an address that the service lists")
	g.wantOpen("192.0.2.2", "198.51.100.3:22", "one that is only routed")
	g.mustOpen("--source", "192.0.2.2")
	g.wantOpen("192.0.2.2", "198.51.100.2:22", "the address that the service lists, granted")
	g.wantDark("192.0.2.3", "198.51.100.2:22", "granted to another")
}

// newGatewayWithLAN returns a gateway with a second interface, lan (198.51.100.1), and a host there (.2, on vi).
func newGatewayWithLAN(t *testing.T) (*gateway, *lab.Host) {
	t.Helper()
	g := newGateway(t)
	inside := lab.New(t, "inside")[0]
	lab.Must(t, lab.Link(inside, "vi", g.host, "lan"))
	for host, addr := range map[*lab.Host][2]string{inside: {"vi", "198.51.100.2/24"},
		g.host: {"lan", "198.51.100.1/24"}} {
		lab.Must(t, host.AddAddr(addr[0], addr[1]))
	}
	return g, inside
}

// TestLimits: the limits for each client, as in the file.
func TestLimits(t *testing.T) {
	asking := func(name string) spa.Request {
		r := request()
		r.Services = []service.Service{{Name: name}}
		return r
	}
	t.Run("live_nonces", func(t *testing.T) {
		g := newGateway(t)
		g.set("limits", "live_nonces", "2")
		bob := sender(g.enrol("bob", "ssh,web"))
		g.start()
		for i, want := range []bool{true, true, false} {
			receipt := g.exchange("192.0.2.2", g.seal(asking("ssh"), bob), bob, wait(want))
			if got := receipt != nil; got != want {
				t.Errorf("packet %d is answered: %v, want %v", i+1, got, want)
			}
		}
		g.mustOpen() // a client that has not sent any is let in
	})
	t.Run("grants", func(t *testing.T) {
		g := newGateway(t)
		g.set("limits", "grants", "1")
		bob := sender(g.enrol("bob", "ssh,web"))
		g.start()
		g.wantReceipt("192.0.2.2", g.seal(asking("ssh"), bob), bob, spa.Granted)
		g.wantReceipt("192.0.2.2", g.seal(asking("web"), bob), bob, spa.ReasonTooManyGrants)
		g.wantReceipt("192.0.2.2", g.seal(asking("ssh"), bob), bob, spa.Granted)
		g.wantReceipt("192.0.2.3", g.seal(asking("ssh"), bob), bob, spa.ReasonTooManyGrants)
		g.mustOpen()
	})
	t.Run("grants_per_hour", func(t *testing.T) {
		g := newGateway(t)
		g.set("limits", "grants_per_hour", "2")
		bob := sender(g.enrol("bob", "ssh,web"))
		g.start()
		g.wantReceipt("192.0.2.2", g.seal(asking("ssh"), bob), bob, spa.Granted)
		g.wantReceipt("192.0.2.2", g.seal(asking("ssh"), bob), bob, spa.Granted)
		g.wantReceipt("192.0.2.2", g.seal(asking("ssh"), bob), bob, spa.ReasonTooManyPerHour)
		g.mustOpen()
	})
}

// TestTerms: a grant lasts as long as the service says by default, and never longer than service and client allow.
func TestTerms(t *testing.T) {
	g := newGateway(t)
	g.set("service.ssh", "for", `"40s"`)
	g.set("service.ssh", "max_for", `"5m"`)
	bob := sender(g.enrol("bob", "ssh"))
	g.edit("bob", "max_for = \"1m\"\n")
	g.start()
	alice := sender(g.profile())
	for _, test := range []struct {
		who   spa.Sender
		asked time.Duration
		want  time.Duration
	}{
		{alice, 0, 40 * time.Second}, {alice, 50 * time.Second, 50 * time.Second}, {alice, time.Hour, 5 * time.Minute},
		{bob, 0, 40 * time.Second}, {bob, 50 * time.Second, 50 * time.Second}, {bob, time.Hour, time.Minute},
	} {
		r := request()
		r.For = test.asked
		receipt := g.wantReceipt("192.0.2.2", g.seal(r, test.who), test.who, spa.Granted)
		if got := receipt.Services[0].For; got != test.want {
			t.Errorf("asked for %v: got %v, want %v", test.asked, got, test.want)
		}
	}
}
