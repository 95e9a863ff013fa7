package main

import (
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

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

var lab2 = netip.MustParseAddr("192.0.2.2")

func appendFile(t testing.TB, path, text string) {
	t.Helper()
	file := lab.Value(os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0))(t)
	defer file.Close()
	_, err := file.WriteString(text)
	lab.Must(t, err)
}

// TestJourney is the main job: dark for all, open to one address, for a time.
func TestJourney(t *testing.T) {
	for _, family := range []struct{ name, granted, stranger, target string }{
		{"IPv4", "192.0.2.2", "192.0.2.3", "192.0.2.1:22"},
		{"IPv6", "2001:db8::2", "2001:db8::3", "[2001:db8::1]:22"},
	} {
		t.Run(family.name, func(t *testing.T) {
			g := newGateway(t)
			host, _, _ := net.SplitHostPort(family.target)
			lab.Must(t, g.client.AddAddr("vc", "2001:db8::3/64"))
			g.replaceInProfile(`address = "192.0.2.1"`, `address = "`+host+`"`)
			g.serve(":22")
			g.start()
			g.wantDark(family.granted, family.target, "before the knock")

			grants := 0
			grant := func(d time.Duration) {
				grants++
				out := g.mustOpen("--for", d.String(), "--source", family.granted)
				if want := `^ssh \(tcp/22\) is open on gw for ` + regexp.QuoteMeta(family.granted) + ` until \d\d:\d\d:\d\d \(` +
					service.FormatDuration(d) + `\)\n$`; !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("got %q, want it to match %s", out, want)
				}
			}
			var conn net.Conn
			whileGranted(t, grant, func(within time.Duration) (err error) {
				conn, err = g.session(family.granted, family.target, within)
				return err
			})
			g.wantDark(family.stranger, family.target, "while it is open for another")
			lab.Eventually(t, "the grant to end", func() bool { return !g.reaches(family.granted, family.target) })
			if err := lab.Echoes(conn, "still here", lab.Patience); err != nil {
				t.Errorf("the session did not outlive the grant: %v", err)
			}
			g.wantOutcomes("alice", slices.Repeat([]string{"granted"}, grants)...)
		})
	}
}

// replaceInProfile edits the profile that spa-client uses.
func (g *gateway) replaceInProfile(old, new string) {
	g.t.Helper()
	path := filepath.Join(g.home, "hosts", "gw.toml")
	data := lab.Value(os.ReadFile(path))(g.t)
	if !strings.Contains(string(data), old) {
		g.t.Fatalf("the profile has no %q:\n%s", old, data)
	}
	lab.Must(g.t, os.WriteFile(path, []byte(strings.Replace(string(data), old, new, 1)), 0o600))
}

// TestClose: a client closes its own grants, and not another client's.
func TestClose(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "ssh"))
	g.serve(":22")
	g.start()
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	r := request()
	r.For = 10 * time.Minute
	g.wantReceipt("192.0.2.2", g.seal(r, bob), bob, spa.Granted)
	out, code := g.run(g.client, "spa-client", "close", "ssh", "--host", "gw", "--source", "192.0.2.2", "--timeout",
		"1m", "--config", g.home)
	if code != 0 {
		t.Fatalf("close: exit %d\n%s", code, out)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "bob, behind the same address, has it open")
	closing := request()
	closing.Type = spa.TypeClose
	g.wantReceipt("192.0.2.2", g.seal(closing, bob), bob, spa.Closed)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "both have closed")
}

// TestExitCodes of spa-client: 3 if the server refuses, 4 if it does not answer.
func TestExitCodes(t *testing.T) {
	g := newGateway(t)
	if out, code := g.open("--timeout", "300ms"); code != 4 {
		t.Errorf("no server: exit %d, want 4\n%s", code, out)
	}
	g.start()
	if out, code := g.run(g.client, "spa-client", "open", "web", "--host", "gw", "--timeout", "1m",
		"--config", g.home); code != 3 {
		t.Errorf("not allowed: exit %d, want 3\n%s", code, out)
	}
	if out, code := g.open("--source", "192.0.2.3"); code != 0 {
		t.Errorf("from an own address: exit %d, want 0\n%s", code, out)
	}
}

// TestReplay: a spent packet stays spent: from any address, across kill -9.
func TestReplay(t *testing.T) {
	g, alice := freshGateway(t)
	r := request()
	r.For = time.Second
	packet := g.seal(r, alice)
	g.wantReceipt("192.0.2.2", packet, alice, spa.Granted)
	lab.Eventually(t, "the grant to end", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:22") })

	inVain := func(when string) {
		t.Helper()
		for _, from := range []string{"192.0.2.2", "192.0.2.3"} {
			if receipt := g.exchange(from, packet, alice, 100*time.Millisecond); receipt != nil {
				t.Errorf("%s: the copy from %s is answered: %v", when, from, receipt.Status)
			}
			g.wantDark(from, "192.0.2.1:22", when)
		}
		if strings.Contains(g.server.log(), "receipt") {
			t.Errorf("%s: the server tried to answer a copy:\n%s", when, g.server.log())
		}
	}
	inVain("same server")
	g.server.stop(syscall.SIGKILL)
	g.start()
	inVain("after kill -9")
	if code := g.server.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit %d, want 0\n%s", code, g.server.log())
	}
	g.start()
	inVain("after a clean restart")
	g.wantAudited("alice", "granted")
	g.mustOpen("--source", "192.0.2.2")
}

// TestKilled: the kernel holds grants and guard: they stay and end on time without the server.
func TestKilled(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	g.mustOpen("--for", "10m", "--source", "192.0.2.2")
	g.mustOpen("--for", "2s", "--source", "192.0.2.4")
	g.server.stop(syscall.SIGKILL)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "the server is dead and the grant lives")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "the server is dead")
	lab.Eventually(t, "the grant to end with the server dead",
		func() bool { return !g.reaches("192.0.2.4", "192.0.2.1:22") })
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "another's grant has ended")
}

// TestRestartKeepsGrants: a grant outlives the process that made it.
func TestRestartKeepsGrants(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	g.mustOpen("--for", "10m", "--source", "192.0.2.2")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		g.server.stop(sig)
		g.start()
		g.wantOpen("192.0.2.2", "192.0.2.1:22", "after "+sig.String())
		g.wantDark("192.0.2.3", "192.0.2.1:22", "after "+sig.String())
	}
}

// TestFlush: after another tool flushes the rule set, the guard is back within a second, with the grants.
func TestFlush(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	g.mustOpen("--for", "10m", "--source", "192.0.2.2")
	g.flushRuleset()
	lab.Eventually(t, "the guard to be back", func() bool { return !g.reaches("192.0.2.3", "192.0.2.1:22") })
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after the flush")
}

// TestFirstStart: a session from before the first start continues.
func TestFirstStart(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	before := lab.Value(g.session("192.0.2.5", "192.0.2.1:22", lab.Patience))(t)
	g.start()
	if err := lab.Echoes(before, "still here", lab.Patience); err != nil {
		t.Errorf("the session that was there before: %v", err)
	}
	g.wantDark("192.0.2.5", "192.0.2.1:22", "a new connection from the same address")
}

// TestConfirm: a guard on trial is removed unless someone gets in through a knock.
func TestConfirm(t *testing.T) {
	opens := func(g *gateway) func() bool {
		return func() bool { return g.reaches("192.0.2.3", "192.0.2.1:22") }
	}
	t.Run("nobody", func(t *testing.T) {
		g := newGateway(t)
		g.serve(":22")
		g.wantDarkBefore(g.trial(2*time.Second), "192.0.2.3", "192.0.2.1:22", "on trial")
		lab.Eventually(t, "the guard to be taken away", opens(g))
		lab.Eventually(t, "the server to end", g.server.done)
		if code := g.server.stop(0); code != 1 {
			t.Errorf("exit %d, want 1\n%s", code, g.server.log())
		}
	})
	t.Run("nobody, and the server killed", func(t *testing.T) {
		g := newGateway(t)
		g.serve(":22")
		end := g.trial(2 * time.Second)
		g.server.stop(syscall.SIGKILL)
		g.wantDarkBefore(end, "192.0.2.3", "192.0.2.1:22", "on trial")
		lab.Eventually(t, "the guard to be taken away", opens(g))
	})
	t.Run("somebody", func(t *testing.T) {
		g := newGateway(t)
		g.serve(":22")
		end := g.confirmedTrial()
		for time.Now().Before(end.Add(time.Second)) {
			g.wantDark("192.0.2.3", "192.0.2.1:22", "confirmed")
		}
	})
}

// trial starts the server with the guard on trial, waits until it is ready, and returns a time before which the guard
// must not be removed.
func (g *gateway) trial(d time.Duration) time.Time {
	g.t.Helper()
	begun := time.Now()
	g.launch(g.command("spa-server", "run", "--config", g.dir, "--confirm", d.String()))
	ready := func() bool { return strings.Contains(g.server.log(), "msg=ready") }
	lab.Eventually(g.t, "the server to be ready or to end", func() bool { return ready() || g.server.done() })
	if !ready() { // if it exited, all of its output has been read
		g.t.Fatalf("the server ended:\n%s", g.server.log())
	}
	return begun.Add(d)
}

// confirmedTrial lets alice in while the guard is on trial, and returns a time at which the trial would have been over.
// If the machine was too slow for that, she gets longer.
func (g *gateway) confirmedTrial() time.Time {
	g.t.Helper()
	for d := 2 * time.Second; d < lab.Patience; d *= 2 {
		g.trial(d)
		end := time.Now().Add(d)
		if _, code := g.open("--source", "192.0.2.2", "--timeout", d.String()); code == 0 {
			g.reachesWithin("192.0.2.2", "192.0.2.1:22", d)
		}
		confirmed := func() bool { return strings.Contains(g.server.log(), "the guard is confirmed") }
		lab.Eventually(g.t, "the trial to be over", func() bool { return confirmed() || g.server.done() })
		if confirmed() {
			return end
		}
	}
	g.t.Fatalf("someone got in, but the guard was not confirmed:\n%s", g.server.log())
	return time.Time{}
}

// wantDarkBefore fails if a port is reached before a given time.
func (g *gateway) wantDarkBefore(end time.Time, from, to, when string) {
	g.t.Helper()
	if g.reaches(from, to) && time.Now().Before(end) {
		g.t.Errorf("%s: %s reaches %s, want dark\nserver:\n%s", when, from, to, g.server.log())
	}
}

// endedGrantOf reports whether the server has logged the end of a client's grant.
func (g *gateway) endedGrantOf(client string) bool {
	return strings.Contains(g.server.log(), `msg="grant ended" client=`+client+" ")
}

// TestKeysWhileRunning: a new client, a changed one and a revoked one take effect at once, without privileges.
func TestKeysWhileRunning(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	dave := sender(g.enrol("dave", "ssh"))
	lab.Eventually(t, "the new client to be known", func() bool { return strings.Contains(g.server.log(), "client=dave") })
	r := request()
	r.For = 10 * time.Minute
	g.wantReceipt("192.0.2.2", g.seal(r, dave), dave, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "the new client")
	g.must("spa-keygen", "revoke", "dave", "--config", g.dir)
	lab.Eventually(t, "what dave had open to be shut", func() bool { return g.endedGrantOf("dave") })
	g.wantDark("192.0.2.2", "192.0.2.1:22", "dave is revoked")
	if receipt := g.exchange("192.0.2.2", g.seal(request(), dave), dave, silence); receipt != nil {
		t.Errorf("a revoked client is answered: %v", receipt.Status)
	}
}

// TestTeardown: the guard is removed on request, with the server alive or dead.
func TestTeardown(t *testing.T) {
	for _, alive := range []bool{true, false} {
		g := newGateway(t)
		g.serve(":22")
		g.start()
		if !alive {
			g.server.stop(syscall.SIGKILL)
		}
		g.wantDark("192.0.2.3", "192.0.2.1:22", "guarded")
		if out, code := g.run(g.host, "spa-server", "teardown", "--config", g.dir); code != 0 {
			t.Fatalf("teardown: exit %d\n%s", code, out)
		}
		g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down")
		if alive {
			lab.Eventually(t, "the server to end", g.server.done)
			if code := g.server.stop(0); code != 0 {
				t.Errorf("exit %d, want 0\n%s", code, g.server.log())
			}
		}
		g.wantOpen("192.0.2.3", "192.0.2.1:22", "torn down, a moment later")
	}
}

// TestGuardAtBoot: spa-server guard shuts the ports; the server takes over without a gap.
func TestGuardAtBoot(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	if out, code := g.run(g.host, "spa-server", "guard", "--config", g.dir); code != 0 {
		t.Fatalf("guard: exit %d\n%s", code, out)
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "guard alone")
	g.start()
	g.mustOpen("--source", "192.0.2.2", "--for", "10m")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "with the server")
	if out, code := g.run(g.host, "spa-server", "guard", "--config", g.dir); code != 0 {
		t.Errorf("guard beside a running server: exit %d\n%s", code, out)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after guard beside a running server")
}
