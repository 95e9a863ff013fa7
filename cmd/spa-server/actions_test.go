package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/action"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// act adds a service without ports that runs these scripts as root, with "log WORD" to write into a file.
func (g *gateway) act(name, begin, end, lines string) {
	g.t.Helper()
	lab.NeedRoot(g.t)
	file := filepath.Join(filepath.Dir(g.dir), "actions.log")
	command := func(script string) string {
		log := "log() { echo $1 $SPA_CLIENT $SPA_ADDRESS $SPA_GRANT >>" + file + "; }; "
		return fmt.Sprintf(`["/bin/sh", "-c", %q]`, log+script)
	}
	if begin != "" {
		lines += "\nrun = " + command(begin)
	}
	if end != "" {
		lines += "\nrun_after = " + command(end)
	}
	g.add(name, lines+"\nuser = \"root\"")
}

// did returns what scripts have logged.
func (g *gateway) did() []string {
	text, _ := os.ReadFile(filepath.Join(filepath.Dir(g.dir), "actions.log"))
	return slices.Collect(strings.Lines(string(text)))
}

// wantDid waits until scripts have logged these words, and no more.
func (g *gateway) wantDid(want ...string) (lines []string) {
	g.t.Helper()
	lab.Eventually(g.t, fmt.Sprint(want), func() bool { lines = g.did(); return len(lines) >= len(want) })
	for i, line := range lines {
		if len(lines) != len(want) || !strings.HasPrefix(line, want[i]) {
			g.t.Fatalf("got %q, want %q\n%s", lines, want, g.server.log())
		}
	}
	return lines
}

// idle waits until no program runs, and returns what became of them.
func (g *gateway) idle() (a *control.Actions) {
	g.t.Helper()
	lab.Eventually(g.t, "an end of all programs", func() bool {
		a = g.status().Actions
		return a != nil && a.Running+a.Waiting == 0
	})
	return a
}

// requestFor returns a request for a service for a time.
func requestFor(name string, d time.Duration) spa.Request {
	r := request()
	r.Services, r.For = []service.Service{{Name: name}}, d
	return r
}

// TestActions is the life of an action: it begins once, over ten retries, a renewal and kill -9, and its end runs once
// after a revocation.
func TestActions(t *testing.T) {
	g := newGateway(t)
	g.act("job", "log begin", "log end", `max_for = "1h"`)
	bob := sender(g.enrol("bob", "job"))
	g.start()
	r := requestFor("job", time.Hour)
	for range 10 {
		receipt := g.wantReceipt("192.0.2.3", g.seal(r, bob), bob, spa.Granted)
		if s := receipt.Services[0]; s.For <= 0 || len(s.Ports) > 0 || !s.Started { // as the first packet was answered
			t.Errorf("got %+v", s)
		}
	}
	g.wantDid("begin bob 192.0.2.3 ")
	g.idle()
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantReceipt("192.0.2.3", g.seal(r, bob), bob, spa.Granted)
	again := g.wantReceipt("192.0.2.3", g.seal(requestFor("job", 0), bob), bob, spa.Granted)
	if again.Services[0].Started {
		t.Error("a renewal says that it has started the program")
	}
	g.idle()
	if gs := g.grants(); len(gs) != 1 || gs[0].Service != "job" || len(gs[0].Ports) != 0 {
		t.Errorf("got %+v", gs)
	}
	g.wantDid("begin bob")
	if out := g.must("spa-server", "revoke", "bob", "--config", g.dir); !strings.Contains(out, "job") {
		t.Errorf("revoke says %q", out)
	}
	lines := g.wantDid("begin bob", "end bob 192.0.2.3 ")
	if first, last := strings.Fields(lines[0]), strings.Fields(lines[1]); first[3] != last[3] {
		t.Errorf("begin and end have different numbers: %q", lines)
	}
}

// TestActionEnds: the program of the end runs when the grant ends by itself, when its client closes it, when a reload
// takes it away, and at the start if it ended while no server ran.
func TestActionEnds(t *testing.T) {
	g := newGateway(t)
	g.act("job", "log begin", "log end", "")
	bob := sender(g.enrol("bob", "job"))
	g.start()
	open := func(d time.Duration) {
		t.Helper()
		n := len(g.did())
		g.wantReceipt("192.0.2.3", g.seal(requestFor("job", d), bob), bob, spa.Granted)
		lab.Eventually(t, "the begin", func() bool { return len(g.did()) == n+1 })
	}
	open(time.Second)
	g.wantDid("begin", "end")
	open(time.Minute)
	r := requestFor("job", 0)
	r.Type = spa.TypeClose
	g.wantReceipt("192.0.2.3", g.seal(r, bob), bob, spa.Closed)
	g.wantDid("begin", "end", "begin", "end")
	open(time.Second)
	g.server.stop(syscall.SIGKILL)
	until := time.Now().Add(time.Second)
	lab.Eventually(t, "the end of the grant", func() bool { return time.Now().After(until) })
	g.start()
	g.wantDid("begin", "end", "begin", "end", "begin", "end")
	open(time.Minute)
	lab.Must(t, os.Remove(filepath.Join(g.dir, "clients", "bob.toml")))
	g.wantDid("begin", "end", "begin", "end", "begin", "end", "begin", "end")
}

// TestActionTimeout: a program that hangs is killed when its time is over, with its children. The log, the audit log
// and status say so.
func TestActionTimeout(t *testing.T) {
	g := newGateway(t)
	marker := fmt.Sprint(7_000_000 + os.Getpid())
	g.act("job", "echo 'a\x1b[2J'; setsid sleep "+marker+" & sleep "+marker, "log end", `timeout = "1s"`)
	bob := sender(g.enrol("bob", "job"))
	g.start()
	g.wantReceipt("192.0.2.3", g.seal(requestFor("job", 0), bob), bob, spa.Granted)
	a := g.idle()
	want := control.Action{Service: "job", Hook: "run", What: "timed out", Count: 1}
	if !slices.Contains(a.Counts, want) {
		t.Errorf("got %+v", a)
	}
	if out, _ := os.ReadFile("/proc/" + fmt.Sprint(a.PID) + "/cmdline"); !strings.HasPrefix(string(out), "spa-runner") {
		t.Errorf("process %d is %q", a.PID, out)
	}
	if log := g.server.log(); !strings.Contains(log, "program timed out") || !strings.Contains(log, "a?[2J") {
		t.Errorf("the log says %s", log)
	}
	var results []string
	for _, line := range g.auditLines() {
		if line["act"] == "run" {
			results = append(results, fmt.Sprint(line["client"], " ", line["service"], " ", line["result"]))
		}
	}
	if want := []string{"bob job started", "bob job timed out"}; !slices.Equal(results, want) {
		t.Errorf("the audit log has %q, want %q", results, want)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if text, _ := os.ReadFile(path); strings.Contains(string(text), "sleep\x00"+marker) {
			t.Errorf("left running: %s", path)
		}
	}
}

// TestActionWithPorts: a service may have both. A port number does not open it past the action, and what cannot be
// started opens nothing.
func TestActionWithPorts(t *testing.T) {
	g := newGateway(t)
	g.serve(":8080")
	g.act("both", "log begin", "log end", `ports = ["tcp/8080"]`)
	g.add("gone", `ports = ["tcp/8081"]
run = ["/nowhere/at/all"]
user = "nobody"`)
	bob := sender(g.enrol("bob", "both,gone"))
	path := filepath.Join(g.dir, "clients", "bob.toml")
	text := lab.Value(os.ReadFile(path))(t)
	lab.Must(t, os.WriteFile(path, []byte(strings.Replace(string(text), `"gone"`, `"gone", "tcp/8080"`, 1)), 0o640))
	g.handOver(path)
	g.start()
	byPort := request()
	byPort.Services = []service.Service{{Proto: service.TCP, Port: 8080}}
	g.wantReceipt("192.0.2.3", g.seal(byPort, bob), bob, spa.ReasonNoService)
	g.wantReceipt("192.0.2.3", g.seal(requestFor("gone", 0), bob), bob, spa.ReasonNoProgram)
	g.wantDark("192.0.2.3", "192.0.2.1:8080", "before the knock")
	g.wantReceipt("192.0.2.3", g.seal(requestFor("both", 0), bob), bob, spa.Granted)
	g.wantOpen("192.0.2.3", "192.0.2.1:8080", "after the knock")
	g.wantDid("begin bob")
}

// TestActionReload: a reload takes changed programs, and refuses what cannot be started as a whole. The first service
// with a program needs a restart.
func TestActionReload(t *testing.T) {
	g := newGateway(t)
	path := filepath.Join(g.dir, "server.toml")
	before := lab.Value(os.ReadFile(path))(t)
	g.start()
	g.act("job", "log begin", "", "")
	reload := func(want string) {
		t.Helper()
		out, code := g.run(g.host, "spa-server", "reload", "--config", g.dir)
		if code == 0 != (want == "") || !strings.Contains(out, want) {
			t.Errorf("reload: exit %d, %s, want %q", code, out, want)
		}
	}
	reload("a restart is needed for the first service that runs a program")
	g.server.stop(syscall.SIGTERM)
	g.start()
	lab.Must(t, os.WriteFile(path, before, 0o640))
	g.handOver(path)
	g.act("job", "log changed", "", "")
	bob := sender(g.enrol("bob", "job"))
	reload("")
	g.wantReceipt("192.0.2.3", g.seal(requestFor("job", time.Second), bob), bob, spa.Granted)
	g.wantDid("changed bob")
	g.add("other", "run = [\"/nowhere/at/all\"]\nuser = \"nobody\"")
	reload("there is no program /nowhere/at/all")
	if out, code := g.run(g.host, "spa-server", "check", "--config", g.dir); code == 0 ||
		!strings.Contains(out, "there is no program /nowhere/at/all") {
		t.Errorf("check: exit %d, %s", code, out)
	}
	lab.Eventually(t, "the end of the grant", func() bool { return len(g.grants()) == 0 })
	g.wantReceipt("192.0.2.3", g.seal(requestFor("job", 0), bob), bob, spa.Granted)
	g.wantDid("changed bob", "changed bob")
}

// TestActionsInUnit: with the capabilities of the unit and of examples/actions/actions.conf, a program runs as another
// user and is killed when its time is over. Without the latter the server does not start, and names that file.
func TestActionsInUnit(t *testing.T) {
	setpriv := lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	g := newGateway(t)
	lab.NeedRoot(t)
	marker := fmt.Sprint(6_000_000 + os.Getpid())
	g.add("job", `run = ["/bin/sh", "-c", "id -un; setsid sleep `+marker+` & exec sleep `+marker+`"]
user = "nobody"
timeout = "1s"`)
	bob := sender(g.enrol("bob", "job"))
	unit, more := "-all,+net_admin,+net_raw,+setuid,+setgid,+setpcap,+chown", "+setuid,+setgid,+kill"
	within := func(bounding, ambient string) *exec.Cmd {
		return exec.Command(setpriv, "--no-new-privs", "--bounding-set", bounding, "--inh-caps", ambient, "--ambient-caps",
			ambient, filepath.Join(bin, "spa-server"), "run", "--config", g.dir)
	}
	g.launch(within(unit, "-all"))
	<-g.server.ended
	for _, words := range []string{"service.job.user", "CAP_KILL", action.DropIn} {
		if !strings.Contains(g.server.log(), words) {
			t.Errorf("the server does not name %s:\n%s", words, g.server.log())
		}
	}
	g.launch(within(unit+",+kill", more))
	lab.Eventually(t, "the server to be ready", func() bool { return strings.Contains(g.server.log(), "msg=ready") })
	if got := g.status().Rights.Capabilities; got != "CAP_NET_ADMIN" {
		t.Errorf("the server has kept %s", got)
	}
	const three = "CapPrm:\t00000000000000e0" // CAP_KILL, CAP_SETGID, CAP_SETUID
	runner := lab.Value(os.ReadFile(fmt.Sprintf("/proc/%d/status", g.status().Actions.PID)))(t)
	if !strings.Contains(string(runner), three) {
		t.Errorf("the runner has other capabilities than three:\n%s", runner)
	}
	g.wantReceipt("192.0.2.3", g.seal(requestFor("job", 0), bob), bob, spa.Granted)
	want := control.Action{Service: "job", Hook: "run", What: "timed out", Count: 1}
	if a := g.idle(); !slices.Contains(a.Counts, want) || !strings.Contains(g.server.log(), "text=nobody") {
		t.Errorf("got %+v\n%s", a, g.server.log())
	}
}
