package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestOnce: the first connection to the service takes the grant with it, as receipt, commands and lists say. A retry
// gives nothing back, nor does a killed server.
func TestOnce(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.set("service.ssh", "once", "true")
	bob := sender(g.enrol("bob", "ssh,web"))
	g.serve(":22")
	g.serve(":80")
	g.start()
	enter := func() net.Conn {
		t.Helper()
		return lab.Value(g.session("192.0.2.2", "192.0.2.1:22", lab.Patience))(t)
	}
	r := request()
	first := g.wantReceipt("192.0.2.2", g.seal(r, bob), bob, spa.Granted)
	if !first.Services[0].Once {
		t.Error("the receipt does not say that one connection gets in")
	}
	if list := g.grants(); len(list) != 1 || !list[0].Once || list[0].Taken {
		t.Errorf("before the connection: %+v", list)
	}
	session := enter()
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the grant is taken")
	if list := g.grants(); len(list) != 1 || !list[0].Taken {
		t.Errorf("after the connection: %+v", list)
	}
	if out, _ := g.run(g.host, "spa-server", "grants", "--config", g.dir); !strings.Contains(out, "once: taken") {
		t.Errorf("grants lists %s", out)
	}
	again := r
	again.Time = again.Time.Add(1)
	if got := g.wantReceipt("192.0.2.2", g.seal(again, bob), bob, spa.Granted); !got.Services[0].Once {
		t.Error("the answer to a retry does not say it")
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the request was a retry")
	g.server.stop(syscall.SIGKILL)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the server was killed")
	g.start()
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the server was started again")
	lab.Must(t, lab.Echoes(session, "still here", lab.Patience))
	g.wantReceipt("192.0.2.2", g.seal(request(), bob), bob, spa.Granted)
	enter()
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the second grant is taken")
}

// TestOnceOfClient: open, with or without --wait, leaves the connection to the user, and connect is that connection.
func TestOnceOfClient(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.set("service.ssh", "once", "true")
	g.serve(":22")
	g.start()
	out := g.mustOpen("--wait")
	for _, words := range []string{"is open for one connection on gw", "ssh is not tested: only the first connection"} {
		if !strings.Contains(out, words) {
			t.Errorf("no %q in %s", words, out)
		}
	}
	lab.Value(g.session("192.0.2.2", "192.0.2.1:22", lab.Patience))(t)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the grant is taken")
	if out := g.mustOpen("--json"); !strings.Contains(out, `"once":true`) {
		t.Errorf("open --json prints %s", out)
	}
	lab.Value(g.session("192.0.2.2", "192.0.2.1:22", lab.Patience))(t) // or connect, which is early, may take that grant
	cmd := g.command("spa-client", "connect", "ssh", "--host", "gw", "--config", g.home)
	cmd.Stdin = strings.NewReader("through the one connection")
	if out, code := lab.Run(t, g.client, cmd); code != 0 || out != "through the one connection" {
		t.Errorf("connect: exit %d, %q", code, out)
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "connect took the grant")
	out, code := g.run(g.client, "spa-client", "probe", "ssh", "--host", "gw", "--config", g.home)
	if code != 0 {
		t.Errorf("probe: exit %d, %s", code, out)
	}
}

// TestOnceThatFailed: a connection that fails has taken the grant, and connect says so.
func TestOnceThatFailed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.set("service.ssh", "once", "true")
	g.start()
	out, code := g.run(g.client, "spa-client", "connect", "ssh", "--host", "gw", "--config", g.home)
	if code != 125 || !strings.Contains(out, "only the first connection gets in") {
		t.Errorf("exit %d, %s", code, out)
	}
	g.serve(":22")
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the connection that was refused took the grant")
	out, code = g.run(g.client, "spa-client", "open", "ssh", "--host", "gw", "--config", g.home)
	if code != 0 || !strings.Contains(out, "for one connection") {
		t.Errorf("exit %d, %s", code, out)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "a new knock")
}

// TestOnceWithIptables: a server that can only use iptables names the setting and the remedy.
func TestOnceWithIptables(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.set("service.ssh", "once", "true")
	path := filepath.Join(g.dir, "server.toml")
	text := string(lab.Value(os.ReadFile(path))(t))
	lab.Must(t, os.WriteFile(path, []byte(strings.Replace(text, `backend = "auto"`, `backend = "iptables"`, 1)), 0o640))
	out, code := g.run(g.host, "spa-server", "run", "--config", g.dir)
	if code == 0 || !strings.Contains(out, "service.ssh.once: needs nftables") {
		t.Errorf("exit %d, %s", code, out)
	}
}
