package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server"
)

// clockEnv makes the test program a server whose clock is ahead by this duration, on the directory in its argument.
const clockEnv = "SPA_TEST_CLOCK"

// becomeServer returns at once, except in a process that startAhead made.
func becomeServer() {
	ahead, err := time.ParseDuration(os.Getenv(clockEnv))
	if err != nil {
		return
	}
	c, err := config.Load(os.Args[1])
	if err == nil {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		now := func() time.Time { return time.Now().Add(ahead) }
		var s *server.Server
		if s, err = server.Open(context.Background(), c, server.Options{Log: log, Now: now}); err == nil {
			err = s.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// startAhead starts a server whose clock is ahead of all others.
func (g *gateway) startAhead(by time.Duration) {
	g.t.Helper()
	cmd := exec.Command("/proc/self/exe", g.dir)
	cmd.Env = append(os.Environ(), clockEnv+"="+by.String())
	g.launch(cmd)
	lab.Eventually(g.t, "the server to be ready", func() bool {
		return strings.Contains(g.server.log(), "msg=ready")
	})
}

// nft runs nft commands on a host.
func (g *gateway) nft(on *lab.Host, words string) {
	g.t.Helper()
	cmd := exec.Command(lab.NeedProgram(g.t, "nft", "apt-get install nftables"), "-f", "-")
	cmd.Stdin = strings.NewReader(words)
	if out, code := lab.Run(g.t, on, cmd); code != 0 {
		g.t.Fatalf("nft: %s", out)
	}
}

// readdress changes alice's profile.
func (g *gateway) readdress(change func(*keys.Profile)) {
	g.t.Helper()
	p := g.profile()
	change(p)
	lab.Must(g.t, keys.WriteProfile(filepath.Join(g.home, "hosts"), p, true))
}

const timeServerAt = "127.0.0.1:12300"

// timeServer answers on the client host by RFC 5905, with a clock that is ahead.
func (g *gateway) timeServer(ahead time.Duration) {
	g.t.Helper()
	var conn *net.UDPConn
	lab.Must(g.t, g.client.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(timeServerAt)))
		return err
	}))
	g.t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 48)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			copy(b[24:32], b[40:48])    // origin: what the client sent
			b[0], b[1] = 0<<6|4<<3|4, 1 // no leap second, version 4, server; stratum 1
			now := time.Now().Add(ahead)
			for _, field := range []int{16, 32, 40} { // reference, receive, transmit
				binary.BigEndian.PutUint32(b[field:], uint32(now.Unix()+2208988800)) // from 1900
				binary.BigEndian.PutUint32(b[field+4:], uint32(uint64(now.Nanosecond())<<32/1e9))
			}
			conn.WriteToUDPAddrPort(b, from)
		}
	}()
}

// reread waits until the server has loaded a change of alice's file.
func (g *gateway) reread() {
	g.t.Helper()
	lab.Eventually(g.t, "the server to see it", func() bool {
		log := g.server.log()
		return strings.Contains(log, `msg="client changed"`) || strings.Contains(log, `msg="client revoked"`)
	})
}

// tornDown removes the guard, and waits for the server to exit.
func (g *gateway) tornDown() {
	g.t.Helper()
	g.fails(0, "teardown", "--config", g.dir)
	lab.Eventually(g.t, "the server to end", g.server.done)
}

type (
	doctorLine struct{ state, text string }
	doctorTest struct {
		name  string
		wrong func(*gateway) // with the server running
		args  []string
		code  int
		want  []doctorLine // among the findings, in this order
		first string       // suspect; empty: there is none
	}
)

const bad, suspect, note, good = "bad", "suspect", "note", "good" // states of a doctorLine

// missing returns how doctor's output differs from what is wanted; empty if it does not.
func (test *doctorTest) missing(out string, code int) string {
	if code != test.code {
		return fmt.Sprintf("got exit code %d, want %d", code, test.code)
	}
	rest := out
	for _, want := range test.want {
		found := false
		for text := range strings.Lines(rest) {
			rest = rest[len(text):]
			if strings.HasPrefix(text, want.state+" ") && strings.Contains(text, want.text) {
				found = true
				break
			}
		}
		if !found {
			return fmt.Sprintf("there is no line, in this order, that says %q: %q", want.state, want.text)
		}
	}
	first := ""
	for text := range strings.Lines(out) {
		if strings.HasPrefix(text, suspect+" ") {
			first = strings.TrimSpace(strings.TrimPrefix(text, suspect))
			break
		}
	}
	if test.first == "" && first != "" || !strings.HasPrefix(first, test.first) {
		return fmt.Sprintf("the first suspect is %q, want %q", first, test.first)
	}
	return ""
}

// examine runs doctor as alice. Its findings depend on what arrived in time: if they are not as wanted, it runs again
// with longer timeouts and without grants before it fails.
func (g *gateway) examine(test *doctorTest) {
	g.t.Helper()
	var out, missing string
	for _, timeout := range []string{"1500ms", "5s", "20s"} {
		var code int
		out, code = g.run(g.client, "spa-client", append([]string{"doctor", "--host", "gw", "--config", g.home, "--timeout",
			timeout}, test.args...)...)
		if missing = test.missing(out, code); missing == "" {
			return
		}
		g.run(g.host, "spa-server", "revoke", "alice", "--config", g.dir)
	}
	g.t.Errorf("%s\ndoctor says:\n%s\nserver:\n%s", missing, out, g.server.log())
}

var doctorTests = []doctorTest{
	{"nothing", func(g *gateway) {}, nil, 0, []doctorLine{{good, "is dark before the knock"},
		{good, "udp/62201 at 192.0.2.1 answers"},
		{good, "clock agrees with the gateway's"}, {good, "granted ssh to 192.0.2.2"},
		{good, "accepts connections after the knock"}}, ""},
	{"gateway's clock is a little wrong", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.startAhead(20*time.Second + 400*time.Millisecond) // minus the rounded travel time of the receipt
	}, nil, 0, []doctorLine{{note, "this machine's clock is 20s behind the gateway's: a gateway ignores knocks that " +
		"are off by more than 30s"}}, ""},
	{"clock is wrong", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.startAhead(2 * time.Minute)
	}, nil, 4, []doctorLine{{bad, "gw does not answer"}, {suspect, "this machine's clock ("}},
		"UDP to udp/62201 is blocked"},
	{"clock is wrong, by a time server", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.startAhead(2 * time.Minute)
		g.timeServer(2 * time.Minute)
	}, []string{"--ntp", timeServerAt}, 4, []doctorLine{{bad, "this machine's clock is 2m0s behind the time server's"},
		{bad, "gw does not answer"}}, "this machine's clock is wrong by 2m0s"},
	{"clock is right, by a time server", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.startAhead(2 * time.Minute)
		g.timeServer(0)
	}, []string{"--ntp", timeServerAt}, 4, []doctorLine{{good, "this machine's clock agrees with the time server's"},
		{bad, "gw does not answer"}, {suspect, "the gateway's clock is wrong; this machine's is right"}},
		"UDP to udp/62201 is blocked"},
	{"time server is silent", func(g *gateway) {}, []string{"--ntp", timeServerAt}, 0,
		[]doctorLine{{note, "the time server did not answer"}, {good, "accepts connections after"}}, ""},
	{"wrong key", func(g *gateway) {
		g.rewrite("clients/alice.toml", `key = ".*"`, fmt.Sprintf("key = %q", keys.NewKey().Reveal()))
		g.reread()
	}, nil, 4, []doctorLine{{bad, "gw does not answer"}, {suspect, "the profile does not belong to this gateway"}},
		"UDP to udp/62201 is blocked"},
	{"revoked", func(g *gateway) {
		g.must("spa-keygen", "revoke", "alice", "--config", g.dir)
		g.reread()
	}, nil, 4, []doctorLine{{bad, "gw does not answer"}, {suspect, "the key was revoked"}},
		"UDP to udp/62201 is blocked"},
	{"name does not resolve", func(g *gateway) {
		g.readdress(func(p *keys.Profile) { p.Address = "gw.invalid" })
	}, nil, 1, []doctorLine{{bad, "gw.invalid does not resolve"}}, ""},
	{"one knock port blocked", func(g *gateway) {
		g.readdress(func(p *keys.Profile) { p.KnockPorts = []uint16{62202, 62201} })
	}, nil, 1, []doctorLine{{bad, "udp/62202 at 192.0.2.1 does not answer, but other knock ports do: it is blocked on " +
		"the way, or the gateway no longer has it"}, {good, "udp/62201 at 192.0.2.1 answers"},
		{good, "accepts connections after"}}, ""},
	{"knock port blocked", func(g *gateway) {
		g.nft(g.host, `table netdev n { chain c { type filter hook ingress device "vs" priority 0; `+
			`udp dport 62201 drop; }; }`)
	}, nil, 4, []doctorLine{{note, "udp/62201 at 192.0.2.1 does not answer"}, {bad, "gw does not answer"}},
		"UDP to udp/62201 is blocked"},
	{"receipts off", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.rewrite("server.toml", `(?m)^receipts = true`, "receipts = false")
		g.start()
		g.readdress(func(p *keys.Profile) { p.Receipts = false })
	}, nil, 0, []doctorLine{{good, "the port opened (this gateway sends no receipts)"},
		{good, "accepts connections after"}}, ""},
	{"service not allowed", func(g *gateway) {
		g.readdress(func(p *keys.Profile) { p.Services["web"] = []string{"tcp/80"} })
	}, nil, 3, []doctorLine{{good, "the gateway granted ssh"}, {bad, "the gateway refuses web"},
		{good, "ssh (tcp/22, IPv4) accepts connections after"}}, ""},
	{"address translated", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type nat hook postrouting priority 100; ip saddr 192.0.2.2 `+
			`snat to 192.0.2.3; }; }`)
	}, nil, 0, []doctorLine{{note, "packets leave from 192.0.2.2 and arrive from 192.0.2.3"}}, ""},
	{"address translated and stated", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type nat hook postrouting priority 100; ip saddr 192.0.2.2 `+
			`snat to 192.0.2.3; }; }`)
	}, []string{"--source", "192.0.2.2"}, 4, []doctorLine{{bad, "gw does not answer"}},
		"the gateway sees another address than 192.0.2.2"},
	{"server down", func(g *gateway) { g.server.stop(syscall.SIGKILL) }, nil, 4,
		[]doctorLine{{good, "is dark before"}, {bad, "gw does not answer"},
			{suspect, "spa-server is not running there or has just started"}}, "UDP to udp/62201 is blocked"},
	{"no guard", (*gateway).tornDown, nil, 4,
		[]doctorLine{{note, "accepts connections without a knock"}, {bad, "gw does not answer"}},
		"spa-server is not running there or has just started"},
	{"knock port silent", func(g *gateway) {
		g.nft(g.host, `table inet n { chain c { type filter hook input priority 0; udp dport 62202 drop; }; }`)
		g.readdress(func(p *keys.Profile) { p.KnockPorts = []uint16{62202, 62201} })
	}, nil, 1, []doctorLine{{bad, "other knock ports do: it is blocked on the way, or the gateway no longer has it"},
		{good, "accepts connections after"}}, ""},
	{"grants shorter than an attempt", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.rewrite("server.toml", `(?m)^for = "30s"`, `for = "1s"`)
		g.start()
		g.nft(g.host, `table inet n { chain c { type filter hook input priority 0; udp dport 62202 drop; }; }`)
		g.readdress(func(p *keys.Profile) { p.KnockPorts = []uint16{62202, 62201} })
	}, nil, 1, []doctorLine{{good, "granted ssh"}, {good, "ssh (tcp/22, IPv4) accepts connections after"}}, ""},
	{"answers lost", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type filter hook input priority 0; udp sport 62201 drop; }; }`)
	}, nil, 4, []doctorLine{{good, "is dark before"}, {note, "does not answer"},
		{bad, "accepts connections now: the gateway received the knock, but its answer does not arrive"}}, ""},
	{"nothing can be sent", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type filter hook output priority 0; udp dport 62201 drop; }; }`)
	}, nil, 1, []doctorLine{{bad, "udp/62201 at 192.0.2.1 cannot be knocked on: sending to 192.0.2.1:62201: "}}, ""},
	{"STUN server silent", func(g *gateway) {}, []string{"--source", "stun:192.0.2.77"}, 1,
		[]doctorLine{{bad, "udp/62201 at 192.0.2.1 cannot be knocked on: asking the STUN server"}}, ""},
	{"receipts off, and nothing to try", func(g *gateway) {
		g.readdress(func(p *keys.Profile) {
			p.Receipts, p.Address, p.Services = false, "192.0.2.77", map[string][]string{"vpn": {"udp/51820"}}
		})
	}, nil, 0, []doctorLine{{note, "it is unknown whether the gateway received it: this gateway sends no receipts, and " +
		"vpn has no TCP port"}}, ""},
	{"receipts off, one service to try", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.rewrite("server.toml", `(?m)^receipts = true`, "receipts = false")
		g.start()
		g.readdress(func(p *keys.Profile) { p.Receipts, p.Services["dns"] = false, []string{"udp/53"} })
	}, nil, 0, []doctorLine{{good, "the port opened (this gateway sends no receipts)"},
		{good, "opened ssh, without a receipt"},
		{note, "dns was requested, but the outcome is unknown"}, {good, "ssh (tcp/22, IPv4) accepts connections after"}},
		""},
	{"receipts off, two knock ports", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.rewrite("server.toml", `(?m)^receipts = true`, "receipts = false")
		g.start()
		g.readdress(func(p *keys.Profile) { p.Receipts, p.KnockPorts = false, []uint16{62202, 62201} })
	}, nil, 0, []doctorLine{{good, "udp/62202 at 192.0.2.1: the port opened, perhaps by another of the knocks"}}, ""},
	{"receipts off, open before", func(g *gateway) {
		g.tornDown()
		g.readdress(func(p *keys.Profile) { p.Receipts = false })
	}, nil, 0, []doctorLine{{note, "accepts connections without a knock"},
		{note, "it is unknown whether the gateway received it"}, {note, "ssh was open before"}}, ""},
	{"granted and rejected by another firewall", func(g *gateway) {
		g.nft(g.host, `table inet n { chain c { type filter hook input priority 10; tcp dport 22 reject with icmpx `+
			`type admin-prohibited; }; }`)
	}, nil, 1,
		[]doctorLine{{bad, "cannot be reached: connect: no route to host: another firewall (fail2ban, ufw) rejects"}}, ""},
	{"banned", func(g *gateway) { // as fail2ban does it; the kernel reports that to one of many connections
		if err := g.host.Sysctl("net.ipv4.icmp_ratelimit", "20000"); err != nil {
			g.t.Error(err)
		}
		g.nft(g.host, `table inet f2b { chain c { type filter hook input priority -1; ip saddr 192.0.2.2 `+
			`tcp dport 22 reject; }; }`)
	}, nil, 1, []doctorLine{{bad, "was granted but refuses connections"},
		{"", "spa-server check --from 192.0.2.2 shows"}}, ""},
	{"nothing listens, and the address is translated", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type nat hook postrouting priority 100; ip saddr 192.0.2.2 `+
			`snat to 192.0.2.3; }; }`)
	}, []string{"web"}, 1,
		[]doctorLine{{bad, "rejects them; or the connection leaves from another address than the knock, which was " +
			"granted to 192.0.2.3"}}, ""},
	{"nothing listens", func(g *gateway) {}, []string{"web"}, 1,
		[]doctorLine{{good, "granted web"}, {bad, "refuses connections: nothing listens there"}}, ""},
}

// TestDoctor: every fault is reported, as certain if it can be known, and otherwise before the other causes.
func TestDoctor(t *testing.T) {
	for _, test := range doctorTests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			g.serve(":22")
			if strings.HasPrefix(test.name, "nothing listens") {
				g.rewrite("clients/alice.toml", `allow = .*`, `allow = ["ssh", "web"]`)
			}
			g.start()
			test.wrong(g)
			g.examine(&test)
		})
	}
}
