package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
)

var probeTests = []struct {
	name  string
	wrong func(*gateway) // with the server running
	code  int
	step  string // that is not ok; empty: all are
	text  string
}{
	{"well", func(*gateway) {}, 0, "", "shut, opened by a knock in "},
	{"server dead", func(g *gateway) { g.server.stop(syscall.SIGKILL) }, 2, "knock", "no answer from 192.0.2.1"},
	{"server and guard gone", (*gateway).tornDown, 2, "before", "accepts connections without a knock"},
	{"own grant", func(g *gateway) { g.mustOpen() }, 1, "before", "until this client's own grant was ended"},
	{"another's grant", func(g *gateway) {
		bob := sender(g.enrol("bob", "ssh"))
		g.wantReceipt("192.0.2.2", g.seal(request(), bob), bob, spa.Granted)
	}, 2, "before", "or another client has a grant for this address"},
	{"knock port blocked", func(g *gateway) {
		g.nft(g.host, `table netdev n { chain c { type filter hook ingress device "vs" priority 0; `+
			`udp dport 62201 drop; }; }`)
	}, 2, "knock", "no answer from 192.0.2.1"},
	{"receipts lost", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type filter hook input priority 0; udp sport 62201 drop; }; }`)
	}, 2, "knock", "no answer, but the port opened"},
	{"clock a little wrong", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.startAhead(20 * time.Second)
	}, 1, "knock", "granted, but the clocks differ by "},
	{"clock wrong", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.startAhead(2 * time.Minute)
	}, 2, "knock", "no answer"},
	{"sshd dead", func(*gateway) {}, 2, "open", "refuses connections: nothing listens there"},
	{"another firewall", func(g *gateway) {
		g.nft(g.host, `table inet n { chain c { type filter hook input priority 10; tcp dport 22 drop; }; }`)
	}, 2, "open", "was granted but does not answer"},
	{"refused", func(g *gateway) {
		g.rewrite("clients/alice.toml", `allow = .*`, `allow = ["web"]`)
		g.reread()
	}, 2, "knock", "the gateway refuses ssh"},
	{"nothing can be sent", func(g *gateway) {
		g.nft(g.client, `table ip n { chain c { type filter hook output priority 0; udp dport 62201 drop; }; }`)
	}, 3, "knock", "sending to 192.0.2.1:62201"},
	{"no name", func(g *gateway) {
		g.readdress(func(p *keys.Profile) { p.Address = "gw.invalid" })
	}, 3, "", "gw.invalid"},
	{"no receipts", func(g *gateway) {
		g.server.stop(syscall.SIGTERM)
		g.rewrite("server.toml", `(?m)^receipts = true`, "receipts = false")
		g.start()
		g.readdress(func(p *keys.Profile) { p.Receipts = false })
	}, 0, "", "shut, opened by a knock in "},
}

// TestProbe: the exit status and the first line name the step that went wrong, and no grant is left.
func TestProbe(t *testing.T) {
	for _, test := range probeTests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			if test.name != "sshd dead" {
				g.serve(":22")
			}
			g.start()
			test.wrong(g)
			g.probes(test.code, test.step, test.text)
		})
	}
}

// probes runs probe in each form, and compares the outcomes.
func (g *gateway) probes(code int, step, text string) {
	g.t.Helper()
	file := filepath.Join(g.t.TempDir(), "spa.prom")
	out, got := g.run(g.client, "spa-client", "probe", "ssh", "--host", "gw", "--config", g.home, "--json",
		"--textfile", file)
	var outcome struct {
		State, Text string
		Steps       []struct {
			Step, State string
			Seconds     float64
		}
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&outcome); err != nil {
		g.t.Fatalf("%v in:\n%s", err, out)
	}
	if got != code || !strings.Contains(outcome.Text, text) {
		g.t.Errorf("got exit code %d, want %d and %q:\n%s\nserver:\n%s", got, code, text, out, g.server.log())
	}
	for _, s := range outcome.Steps {
		if bad := s.State != "ok"; bad != (s.Step == step) && outcome.State != "ok" {
			g.t.Errorf("step %s is %s, and %s should be the one that is not ok:\n%s", s.Step, s.State, step, out)
		}
	}
	metrics, err := os.ReadFile(file)
	want := fmt.Sprintf("spa_probe_state{host=\"gw\",service=\"ssh\"} %d\n", code)
	if err != nil || !strings.Contains(string(metrics), want) || strings.Count(string(metrics), "spa_probe_step_state{") !=
		len(outcome.Steps) {
		g.t.Errorf("want %s in the text file, and each step: %v\n%s", want, err, metrics)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o644 {
		g.t.Errorf("another user cannot read the text file: %v", err)
	}
	if g.server.done() {
		return
	}
	for _, grant := range g.grants() {
		if grant.Client == "alice" {
			g.t.Errorf("a grant is left: %+v", grant)
		}
	}
}

// TestProbeInterrupted: a probe that is interrupted while its grant is open ends the grant.
func TestProbeInterrupted(t *testing.T) {
	g := newGateway(t) // nothing listens on tcp/22, so the probe waits
	g.set("service.ssh", "for", `"10m"`)
	g.start()
	cmd := g.command("spa-client", "probe", "ssh", "--host", "gw", "--config", g.home, "--timeout", "2m")
	lab.Must(t, g.client.Start(cmd))
	lab.Eventually(t, "the grant", func() bool { return len(g.grants()) == 1 })
	lab.Must(t, cmd.Process.Signal(os.Interrupt))
	lab.Eventually(t, "its end", func() bool { return len(g.grants()) == 0 })
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("got exit code %d, want 130", code)
	}
}
