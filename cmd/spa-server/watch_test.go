package main

import (
	"bufio"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// watching is a running spa-server watch --json, and its output.
type watching struct {
	mu   sync.Mutex
	seen []control.Decision
	kill func()
}

func (w *watching) decisions() []control.Decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// watch starts to watch, and returns once the server knows.
func (g *gateway) watch() *watching {
	g.t.Helper()
	cmd := g.command("spa-server", "watch", "--json", "--config", g.dir)
	out := lab.Value(cmd.StdoutPipe())(g.t)
	before := g.status().Watchers
	lab.Must(g.t, cmd.Start())
	w := &watching{kill: func() { cmd.Process.Kill(); cmd.Wait() }}
	g.t.Cleanup(w.kill)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var d control.Decision
			if json.Unmarshal(lines.Bytes(), &d) == nil {
				w.mu.Lock()
				w.seen = append(w.seen, d)
				w.mu.Unlock()
			}
		}
	}()
	lab.Eventually(g.t, "the watcher to be known", func() bool { return g.status().Watchers > before })
	return w
}

// wantShown waits for a decision of a client with the verdict and returns it.
func (w *watching) wantShown(t testing.TB, verdict, client string) control.Decision {
	t.Helper()
	var found control.Decision
	lab.Eventually(t, verdict+" of "+client+" to be shown", func() bool {
		i := slices.IndexFunc(w.decisions(), func(d control.Decision) bool {
			return d.Verdict == verdict &&
				d.Client == client
		})
		if i >= 0 {
			found = w.decisions()[i]
		}
		return i >= 0
	})
	return found
}

// TestWatch: decisions are shown as they are made, including packets of a client's key that were refused in silence;
// noise is summed up.
func TestWatch(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "web"))
	carol := sender(g.enrol("carol", "ssh"))
	g.start()
	alice := sender(g.profile())
	w := g.watch()
	begun := time.Now()
	g.wantDecisionsShown(w, alice, bob)
	g.wantSilentShown(w, alice, carol)
	g.wantSummedUp(w, begun)
	w.kill()
	lab.Eventually(t, "the watcher to be forgotten", func() bool { return g.status().Watchers == 0 })
}

// wantDecisionsShown makes grants, ends them and has one refused: the watcher sees each.
func (g *gateway) wantDecisionsShown(w *watching, alice, bob spa.Sender) {
	t := g.t
	t.Helper()
	r := request()
	r.For = time.Second
	g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
	if d := w.wantShown(t, "granted", "alice"); d.Command != "open" || !slices.Equal(d.Services, []string{"ssh"}) ||
		d.From.Addr() != lab2 || len(d.Until) != 1 || d.Packets != 0 {
		t.Errorf("granted: %+v", d)
	}
	if d := w.wantShown(t, "ended", "alice"); d.Source != lab2 || !slices.Equal(d.Services, []string{"ssh"}) {
		t.Errorf("ended: %+v", d)
	}
	g.wantReceipt("192.0.2.2", g.seal(long(), alice), alice, spa.Granted)
	closing := request()
	closing.Type = spa.TypeClose
	g.wantReceipt("192.0.2.2", g.seal(closing, alice), alice, spa.Closed)
	if d := w.wantShown(t, "closed", "alice"); d.Command != "close" {
		t.Errorf("closed: %+v", d)
	}
	later := request()
	later.For, later.Services = time.Second, []service.Service{{Name: "web"}}
	g.wantReceipt("192.0.2.2", g.seal(later, bob), bob, spa.Granted)
	w.wantShown(t, "ended", "bob")
	g.wantReceipt("192.0.2.2", g.seal(request(), bob), bob, spa.ReasonNotAllowed)
	if d := w.wantShown(t, "denied", "bob"); !strings.Contains(d.Reason, "not allowed") {
		t.Errorf("denied: %+v", d)
	}
}

// wantSilentShown sends stale packets of carol's key, a copy of a packet of alice's and noise, none of them answered.
func (g *gateway) wantSilentShown(w *watching, alice, carol spa.Sender) {
	t := g.t
	t.Helper()
	behind, begun := request(), time.Now()
	behind.Time = begun.Add(-43 * time.Second)
	stale := g.seal(behind, carol)
	for range 50 {
		g.send("192.0.2.4", stale)
	}
	if d := w.wantShown(t, "unopened", "carol"); !strings.Contains(d.Reason, "stale") || d.Ahead > -43 ||
		d.Ahead < -43-time.Since(begun).Seconds() {
		t.Errorf("stale: %+v", d)
	}
	stated := request()
	stated.Source = lab2
	g.send("192.0.2.5", g.seal(stated, alice))
	if d := w.wantShown(t, "elsewhere", "alice"); !d.Copied || d.From.Addr().String() != "192.0.2.5" {
		t.Errorf("copied: %+v", d)
	}
	for range 200 {
		g.send("192.0.2.6", make([]byte, 200))
	}
}

// wantSummedUp: since begun, carol's 50 packets and the noise have at most a line a second each, and noise has no
// address.
func (g *gateway) wantSummedUp(w *watching, begun time.Time) {
	t := g.t
	t.Helper()
	// Silent refusals are summed up each second in no particular order: wait for all of them.
	lab.Eventually(t, "all that came in silence to be summed up", func() bool {
		noise, stale := uint64(0), uint64(0)
		for _, d := range w.decisions() {
			switch {
			case d.Verdict == "unopened" && d.Client == "":
				noise += max(d.Packets, 1)
			case d.Client == "carol":
				stale += max(d.Packets, 1)
			}
		}
		return noise == 200 && stale == 50
	})
	most := 2 + int(time.Since(begun)/time.Second) // the first at once, and then one per second
	shown, noise, ended := 0, 0, 0
	all := w.decisions()
	for _, d := range all {
		switch {
		case d.Verdict == "ended":
			ended++
		case d.Client == "carol":
			shown++
		case d.Client == "":
			noise++
		}
		if d.Client == "" && d.From.IsValid() {
			t.Errorf("noise with an address: %+v", d)
		}
	}
	if others := len(all) - shown - noise; shown > most || noise > most || others != 8 {
		t.Errorf("50 stale packets in %d lines, noise in %d, want at most %d; %d other lines, want 8",
			shown, noise, most, others)
	}
	if ended != 2 {
		t.Errorf("%d grants are reported as ended, want the two that were not closed before", ended)
	}
}

// TestWatchText: the lines are sentences, and the end of the server is reported.
func TestWatchText(t *testing.T) {
	g := newGateway(t)
	g.start()
	cmd := g.command("spa-server", "watch", "--config", g.dir)
	var out, errs lab.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	lab.Must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	lab.Eventually(t, "the watcher to be known", func() bool { return g.status().Watchers == 1 })
	alice := sender(g.profile())
	behind := request()
	behind.Time = time.Now().Add(-430 * time.Second)
	g.send("192.0.2.4", g.seal(behind, alice))
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	for _, want := range []string{` unopened alice from 192\.0\.2\.4:`, `stale packet, clock 4[3-9]\d s behind\n`,
		` granted alice ssh from 192\.0\.2\.2:`, ` until `} {
		lab.Eventually(t, want, func() bool { return regexp.MustCompile(want).MatchString(out.String()) })
	}
	g.server.stop(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(errs.String(), "hung up") {
		t.Errorf("when the server ends: exit %d\n%s", code, errs.String())
	}
}
