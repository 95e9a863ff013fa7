package main

import (
	"syscall"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestPersist: with a table of our own another tool's flush leaves the guard alone, also while no
// server runs. Where a file of the administrator's holds the guard, the table has to be flushable.
func TestPersist(t *testing.T) {
	for persist, dark := range map[string]bool{"owner": true, "file": false} {
		t.Run(persist, func(t *testing.T) {
			g := newGateway(t)
			g.set("firewall", "persist", `"`+persist+`"`)
			g.serve(":22")
			g.start()
			g.server.stop(syscall.SIGKILL)
			g.wantDark("192.0.2.3", "192.0.2.1:22", "the server is dead")
			g.flushRuleset()
			if got := !g.reachesWithin("192.0.2.3", "192.0.2.1:22", wait(!dark)); got != dark {
				t.Errorf("after a flush: dark %v, want %v", got, dark)
			}
		})
	}
}

// TestOnExpiry: what becomes of a session when its grant ends is what its service says.
func TestOnExpiry(t *testing.T) {
	g := newGateway(t)
	g.set("service.web", "on_expiry", `"cut"`)
	bob := sender(g.enrol("bob", "ssh,web"))
	g.serve(":22")
	g.serve(":80")
	g.start()
	r := request()
	r.For, r.Services = 3*time.Second, []spa.Service{{Name: "ssh"}, {Name: "web"}}
	g.wantReceipt("192.0.2.2", g.seal(r, bob), bob, spa.Granted)
	kept, err := lab.Dial(g.client, "192.0.2.2", "192.0.2.1:22", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	cut, err := lab.Dial(g.client, "192.0.2.2", "192.0.2.1:80", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	if err := lab.Echoes(cut, "while it is granted", 2*time.Second); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, "the grants to end", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:22") })
	if err := lab.Echoes(cut, "after it", silence); err == nil {
		t.Error(`the session of a service with on_expiry = "cut" outlived its grant`)
	}
	if err := lab.Echoes(kept, "after it", 2*time.Second); err != nil {
		t.Errorf("the session of the other did not: %v", err)
	}
}
