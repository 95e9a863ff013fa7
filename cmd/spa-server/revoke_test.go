package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestRevokeClient: a client's grants end now, no earlier packet opens them again, and its key stays valid.
func TestRevokeClient(t *testing.T) {
	g := newGateway(t)
	g.keepFresh()
	bob := sender(g.enrol("bob", "ssh"))
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	const ahead = 4 * time.Minute
	r := request()
	r.For, r.Time = 10*time.Minute, time.Now()
	heldBack := request()
	heldBack.Time = time.Now().Add(ahead)
	g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
	g.wantReceipt("192.0.2.2", g.seal(long(), bob), bob, spa.Granted)
	g.wantReceipt("192.0.2.3", g.seal(long(), bob), bob, spa.Granted)

	out := g.fails(0, "revoke", "alice", "--config", g.dir)
	wantSaid(t, out, "ended: alice ssh (tcp/22) for 192.0.2.2", "note: the key of alice still works",
		"spa-keygen revoke alice")
	if grants := g.grants(); len(grants) != 2 || grants[0].Client != "bob" {
		t.Errorf("left: %+v, want bob's two", grants)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "bob, behind the same address, has it open")
	// Her clock may be ahead: a packet that was held back, a retry, and then one that cannot be from before.
	g.wantReceipt("192.0.2.2", g.seal(heldBack, alice), alice, spa.ReasonSuperseded)
	r.Time = time.Now().Add(ahead)
	g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.ReasonSuperseded)
	g.wantReceipt("192.0.2.2", g.seal(latest(), alice), alice, spa.Granted)

	wantSaid(t, g.fails(0, "revoke", "bob", "--config", g.dir), "192.0.2.2", "192.0.2.3")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "after bob's revocation")
	wantSaid(t, g.fails(1, "revoke", "bob", "--config", g.dir), "error: nothing is open for bob", "--cut")
	wantSaid(t, g.fails(1, "revoke", "nobody", "--config", g.dir), `error: there is no client "nobody"`, "spa-keygen list")
	_, err := g.session("192.0.2.2", "192.0.2.1:22", lab.Patience)
	lab.Must(t, err)
	wantSaid(t, g.must("spa-keygen", "revoke", "alice", "--config", g.dir), "alice is revoked")
	lab.Eventually(t, "alice's grants to end", func() bool { return len(g.grants()) == 0 })
	out = g.fails(0, "revoke", "alice", "--cut", "--config", g.dir)
	if wantSaid(t, out, "the key of alice is revoked: it no longer opens anything"); strings.Contains(out, "still works") {
		t.Errorf("of a key that is revoked:\n%s", out)
	}
	wantSaid(t, g.fails(1, "revoke", "alice", "--config", g.dir), "nothing is open for alice, and its key is revoked")
	g.server.stop(syscall.SIGTERM) // so all of its output is there
	if s := g.server.log(); strings.Count(s, "revoked by command") != 3 {
		t.Errorf("the log does not name three revocations:\n%s", s)
	}
}

// TestRevokeUnheld: a packet on its way opens nothing, even if there was no grant to end, and even after kill -9.
func TestRevokeUnheld(t *testing.T) {
	g, alice := freshGateway(t)
	fast := request() // with a clock that is ahead
	fast.Time = time.Now().Add(4 * time.Minute)
	heldBack := g.seal(fast, alice)
	wantSaid(t, g.fails(1, "revoke", "alice", "--config", g.dir), "nothing is open for alice")
	log := string(lab.Value(os.ReadFile(filepath.Join(g.dir, "audit.jsonl")))(t))
	if !strings.Contains(log, `"act":"revoke","program":"spa-server","client":"alice"`) {
		t.Errorf("the audit log has no line of it:\n%s", log)
	}
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantReceipt("192.0.2.2", heldBack, alice, spa.ReasonSuperseded)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after the packet that was held back")
}

// TestNarrowedRange: once a range of ports is taken from a client, no earlier packet opens any of them, even if the
// range is given back.
func TestNarrowedRange(t *testing.T) {
	g := newGateway(t)
	g.keepFresh()
	g.rewrite("server.toml", `ports = \["tcp/80"\]`, `ports = ["tcp/10000-10010"]`)
	bob := sender(g.enrol("bob", "tcp/10000-10010"))
	g.start()
	port := func(r spa.Request) []byte {
		r.Services = []service.Service{{Proto: service.TCP, Port: 10005}}
		return g.seal(r, bob)
	}
	heldBack := port(request())
	for _, allow := range []string{`["ssh"]`, `["tcp/10000-10010"]`} {
		g.rewrite("clients/bob.toml", `allow = .*`, "allow = "+allow)
		g.takeOver()
	}
	g.wantReceipt("192.0.2.2", heldBack, bob, spa.ReasonSuperseded)
	g.wantReceipt("192.0.2.2", port(latest()), bob, spa.Granted)
}

// TestRevokeAddress: grants for an address end, whichever client's they are.
func TestRevokeAddress(t *testing.T) {
	g := newGateway(t)
	g.keepFresh()
	bob := sender(g.enrol("bob", "ssh"))
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	heldBack := g.seal(request(), bob)
	g.wantReceipt("192.0.2.2", g.seal(long(), alice), alice, spa.Granted)
	g.wantReceipt("192.0.2.2", g.seal(long(), bob), bob, spa.Granted)
	g.wantReceipt("192.0.2.3", g.seal(long(), bob), bob, spa.Granted)
	w := g.watch()
	revoked := objects[control.Revoked](t, g.must("spa-server", "revoke", "192.0.2.2", "--json", "--config", g.dir))
	if len(revoked) != 1 || len(revoked[0].Ended) != 2 || revoked[0].Ended[0].Client != "alice" ||
		revoked[0].Ended[1].Client != "bob" {
		t.Errorf("got %+v, want alice's and bob's", revoked)
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after the revocation")
	g.wantOpen("192.0.2.3", "192.0.2.1:22", "another address")
	g.wantReceipt("192.0.2.2", heldBack, bob, spa.ReasonSuperseded)
	for _, client := range []string{"alice", "bob"} {
		if d := w.wantShown(t, "revoked", client); d.Source != lab2 {
			t.Errorf("watchers see %+v", d)
		}
	}
	wantSaid(t, g.fails(1, "revoke", "192.0.2.2", "--config", g.dir), "nothing is open for 192.0.2.2")
}
