package main

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// add adds a service to server.toml.
func (g *gateway) add(name, lines string) {
	g.t.Helper()
	appendFile(g.t, filepath.Join(g.dir, "server.toml"), "\n[service."+name+"]\n"+lines+"\n")
}

// TestRanges: a service of several ports and ranges, of TCP and UDP, is opened completely, and nothing else.
func TestRanges(t *testing.T) {
	g := newGateway(t)
	g.add("mosh", `ports = ["tcp/60000-60010", "tcp/60020", "udp/60000-61000"]`)
	bob := sender(g.enrol("bob", "mosh"))
	shut := []string{"192.0.2.1:60000", "192.0.2.1:60005", "192.0.2.1:60010", "192.0.2.1:60020", "[2001:db8::1]:60010"}
	for _, port := range []string{":60000", ":60005", ":60010", ":60020", ":60011", ":59999"} {
		g.serve(port)
	}
	udp := []uint16{60000, 60500, 61000}
	for _, port := range append(udp, 61001) {
		g.serveUDP(port)
	}
	g.start()
	for _, to := range shut[:4] {
		g.wantDark("192.0.2.2", to, "before the knock")
	}
	for _, port := range udp {
		g.wantHeard(false, "192.0.2.2", fmt.Sprintf("192.0.2.1:%d", port), "before the knock")
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:60011", "beside the range, guarded by nobody")
	g.wantHeard(true, "192.0.2.2", "192.0.2.1:61001", "beside the range, guarded by nobody")

	r := long()
	r.Services = []service.Service{{Name: "mosh"}}
	receipt := g.wantReceipt("192.0.2.2", g.seal(r, bob), bob, spa.Granted)
	if got := fmt.Sprint(receipt.Services[0].Ports); got != "[tcp/60000-60010 tcp/60020 udp/60000-61000]" {
		t.Errorf("the receipt lists %s", got)
	}
	for _, to := range shut[:4] {
		g.wantOpen("192.0.2.2", to, "granted")
		g.wantDark("192.0.2.3", to, "granted to another")
	}
	g.wantDark("2001:db8::2", shut[4], "granted in IPv4")
	for _, port := range udp {
		g.wantHeard(true, "192.0.2.2", fmt.Sprintf("192.0.2.1:%d", port), "granted")
		g.wantHeard(false, "192.0.2.3", fmt.Sprintf("192.0.2.1:%d", port), "granted to another")
	}
	r = long()
	r.Services = []service.Service{{Name: "mosh"}}
	g.wantReceipt("2001:db8::2", g.seal(r, bob), bob, spa.Granted)
	g.wantOpen("2001:db8::2", shut[4], "granted in IPv6")
	g.wantHeard(true, "2001:db8::2", "[2001:db8::1]:61000", "granted in IPv6")
}

// TestRawPorts: a client may open single ports that its file names, even by ranges, if services guard them.
func TestRawPorts(t *testing.T) {
	g := newGateway(t)
	g.add("apps", `ports = ["tcp/8000-8050", "tcp/8443"]`)
	g.rewrite("clients/alice.toml", `allow = .*`, `allow = ["tcp/8443", "tcp/8000-8100"]`) // more than is guarded
	for _, port := range []string{":8443", ":8000", ":8001", ":8050", ":8051", ":22"} {
		g.serve(port)
	}
	g.start()
	ask := func(port string) (string, int) {
		return g.run(g.client, "spa-client", "open", port, "--host", "gw", "--for", "10m", "--timeout", "1m", "--source",
			"192.0.2.2", "--config", g.home)
	}
	for port, want := range map[string]struct {
		code int
		says string
	}{
		"tcp/8443": {0, "tcp/8443 is open on gw for 192.0.2.2 until"},
		"tcp/8001": {0, "tcp/8001 is open"},
		"tcp/8050": {0, "tcp/8050 is open"},
		"tcp/8051": {3, "no such service"},
		"tcp/22":   {3, "not allowed"},
		"apps":     {3, "not allowed"},
	} {
		if out, code := ask(port); code != want.code || !strings.Contains(out, want.says) {
			t.Errorf("%s: exit %d and %q, want %d and %q", port, code, out, want.code, want.says)
		}
	}
	for _, port := range []string{"8443", "8001", "8050"} {
		g.wantOpen("192.0.2.2", "192.0.2.1:"+port, "asked for")
		g.wantDark("192.0.2.3", "192.0.2.1:"+port, "asked for by another")
	}
	for _, port := range []string{"8000", "22"} {
		g.wantDark("192.0.2.2", "192.0.2.1:"+port, "of the same services, not asked for")
	}
}

// TestFiftyAtOnce: fifty programs of one client open at once, with one key and the default limits of init.
func TestFiftyAtOnce(t *testing.T) {
	const n = 50
	g := newGateway(t)
	g.serve(":22")
	g.start()
	var wg sync.WaitGroup
	failed := make(chan string, n)
	for i := range n {
		wg.Go(func() {
			from := fmt.Sprintf("192.0.2.%d", 2+i%8)
			cmd := g.command("spa-client", "open", "ssh", "--host", "gw", "--for", "10m", "--timeout", "1m", "--source",
				from, "--config", g.home)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := g.client.Start(cmd); err != nil {
				failed <- err.Error()
				return
			}
			if err := cmd.Wait(); err != nil {
				failed <- fmt.Sprintf("%v: %s", err, out.String())
			}
		})
	}
	wg.Wait()
	close(failed)
	for text := range failed {
		t.Errorf("of %d at once: %s", n, text)
	}
	if verdicts := g.audited("alice"); strings.Count(strings.Join(verdicts, " "), "granted") != n {
		t.Errorf("got %d decisions, want %d grants: %v", len(verdicts), n, verdicts)
	}
	for i := range 8 {
		g.wantOpen(fmt.Sprintf("192.0.2.%d", 2+i), "192.0.2.1:22", "one of fifty")
	}
}

// TestEverythingAtOnce: a client requests as much as one request can hold, eight services of 1024 ports each, and gets
// all of it or, with one port more, nothing.
func TestEverythingAtOnce(t *testing.T) {
	g := newGateway(t)
	r := long()
	r.Services = nil
	var names []string
	for i := range 8 {
		name := fmt.Sprintf("w%d", i)
		g.add(name, fmt.Sprintf(`ports = ["tcp/%d-%d"]`, 10000+1024*i, 10000+1024*i+1023))
		r.Services = append(r.Services, service.Service{Name: name})
		names = append(names, name)
	}
	bob := sender(g.enrol("bob", strings.Join(names, ",")+",ssh"))
	g.serve(":10000")
	g.serve(":18191")
	g.serve(":22")
	g.start()
	r.Time = time.Now()
	g.wantReceipt("192.0.2.2", g.seal(r, bob), bob, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:10000", "the first of 8192 ports")
	g.wantOpen("192.0.2.2", "192.0.2.1:18191", "the last of 8192 ports")
	g.wantDark("192.0.2.3", "192.0.2.1:18191", "from elsewhere")
	g.wantReceipt("192.0.2.2", g.seal(request(), bob), bob, spa.ReasonTooManyPorts)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "one port more")
	lab.Eventually(t, "a refresh, which is no more than before but has to wait its turn", func() bool {
		time.Sleep(250 * time.Millisecond) // each attempt spends a packet
		r.ID, r.Time = spa.NewRequestID(), time.Now()
		receipt := g.exchange("192.0.2.2", g.seal(r, bob), bob, lab.Patience)
		return receipt != nil && receipt.Status == spa.Granted
	})
	r.ID, r.Time = spa.NewRequestID(), time.Now()
	g.wantReceipt("192.0.2.3", g.seal(r, bob), bob, spa.ReasonTooManyPorts) // from another address it is as much again
	g.wantDark("192.0.2.3", "192.0.2.1:10000", "all or none")
	g.mustOpen() // others are not limited by that
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantOpen("192.0.2.2", "192.0.2.1:18191", "after kill -9")
}

// TestOverlappingRanges: two clients behind one address hold overlapping ranges. The shorter grant never shortens the
// longer one, and closing one removes only its own ports.
func TestOverlappingRanges(t *testing.T) {
	g := newGateway(t)
	g.add("low", `ports = ["tcp/7000-7010"]`)
	g.add("high", `ports = ["tcp/7005-7015"]`)
	alice := sender(g.enrol("low", "low"))
	bob := sender(g.enrol("high", "high"))
	for _, port := range []string{":7000", ":7005", ":7010", ":7015"} {
		g.serve(port)
	}
	g.start()
	ask := func(s spa.Sender, kind spa.Type, name string, d time.Duration, want spa.Status) {
		t.Helper()
		r := request()
		r.Type, r.For, r.Services = kind, d, []service.Service{{Name: name}}
		g.wantReceipt("192.0.2.2", g.seal(r, s), s, want)
	}
	reach := func(when string, ports map[string]bool) {
		t.Helper()
		for port, open := range ports {
			if open {
				g.wantOpen("192.0.2.2", "192.0.2.1:"+port, when)
			} else {
				g.wantDark("192.0.2.2", "192.0.2.1:"+port, when)
			}
		}
	}
	ask(alice, spa.TypeOpen, "low", 10*time.Minute, spa.Granted)
	whileGranted(t,
		func(d time.Duration) { ask(bob, spa.TypeOpen, "high", d, spa.Granted) },
		func(within time.Duration) error {
			for _, port := range []string{"7000", "7005", "7010", "7015"} {
				if !g.reachesWithin("192.0.2.2", "192.0.2.1:"+port, within) {
					return fmt.Errorf("both have it open, and %s is shut", port)
				}
			}
			return nil
		})
	lab.Eventually(t, "the shorter to end", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:7015") })
	reach("the shorter has ended", map[string]bool{"7000": true, "7005": true, "7010": true})
	ask(bob, spa.TypeOpen, "high", 10*time.Minute, spa.Granted)
	reach("both again", map[string]bool{"7000": true, "7005": true, "7010": true, "7015": true})
	ask(alice, spa.TypeClose, "low", 0, spa.Closed)
	reach("the first has closed", map[string]bool{"7000": false, "7005": true, "7010": true, "7015": true})
	ask(bob, spa.TypeClose, "high", 0, spa.Closed)
	reach("both have closed", map[string]bool{"7000": false, "7005": false, "7010": false, "7015": false})
}

// TestClosed: a stranger finds a guarded port silent, or closed like the host's other ports.
func TestClosed(t *testing.T) {
	for closed, refused := range map[string]bool{"drop": false, "reject": true} {
		t.Run(closed, func(t *testing.T) {
			g := newGateway(t)
			g.set("firewall", "closed", `"`+closed+`"`)
			g.set("service.web", "ports", `["tcp/80", "udp/5000"]`)
			g.serve(":22")
			g.serveUDP(5000)
			g.start()
			for from, to := range map[string]string{"192.0.2.3": "192.0.2.1", "2001:db8::2": "[2001:db8::1]"} {
				conn, err := lab.Dial(g.client, from, to+":22", wait(refused))
				if err == nil {
					conn.Close()
				}
				if got := errors.Is(err, syscall.ECONNREFUSED); got != refused || err == nil {
					t.Errorf("tcp %s: got %v, want it refused: %v", to, err, refused)
				}
				heard, err := g.hears(from, to+":5000", silence)
				if refused { // the kernel limits how many such messages it sends per second
					lab.Eventually(t, "udp to be refused", func() bool {
						heard, err = g.hears(from, to+":5000", silence)
						return heard || errors.Is(err, syscall.ECONNREFUSED)
					})
				}
				if got := errors.Is(err, syscall.ECONNREFUSED); got != refused || heard {
					t.Errorf("udp %s: got %v, want it refused: %v", to, err, refused)
				}
				// The host has no other firewall here: every closed port answers, and the knock port does so in the
				// same way.
				for _, port := range []string{":62201", ":62202"} {
					lab.Eventually(t, port+" to answer that it is closed", func() bool {
						heard, err := g.hears(from, to+port, silence)
						return !heard && errors.Is(err, syscall.ECONNREFUSED)
					})
				}
			}
			g.mustOpen("--source", "192.0.2.2")
			g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted")
		})
	}
}

// TestTrustedInterfaces: packets that arrive on one need no knock; those on another do.
func TestTrustedInterfaces(t *testing.T) {
	g, inside := newGatewayWithLAN(t)
	g.set("firewall", "trusted_interfaces", `["lan"]`)
	g.serve(":22")
	g.start()
	g.wantDark("192.0.2.2", "192.0.2.1:22", "from outside")
	conn, err := lab.Dial(inside, "198.51.100.2", "198.51.100.1:22", lab.Patience)
	if err != nil {
		t.Fatalf("from the trusted interface: %v", err)
	}
	conn.Close()
	g.mustOpen("--source", "192.0.2.2")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "from outside, granted")
}
