package main

import (
	"net"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestPersist: if a table has an owner, another tool's flush leaves the guard alone, even while no server runs. If the
// administrator's rule file holds the guard, the table must be flushable.
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

// TestOnExpiry: the service's setting decides what happens to a session when its grant ends.
func TestOnExpiry(t *testing.T) {
	g := newGateway(t)
	g.set("service.web", "on_expiry", `"cut"`)
	bob := sender(g.enrol("bob", "ssh,web"))
	g.serve(":22")
	g.serve(":80")
	g.start()
	grant := func(d time.Duration) {
		r := request()
		r.For, r.Services = d, []service.Service{{Name: "ssh"}, {Name: "web"}}
		g.wantReceipt("192.0.2.2", g.seal(r, bob), bob, spa.Granted)
	}
	var kept, cut net.Conn
	whileGranted(t, grant, func(within time.Duration) (err error) {
		if kept, err = g.session("192.0.2.2", "192.0.2.1:22", within); err != nil {
			return err
		}
		if cut, err = g.session("192.0.2.2", "192.0.2.1:80", within); err != nil {
			return err
		}
		return lab.Echoes(cut, "while it is granted", within)
	})
	for _, port := range []string{"22", "80"} {
		lab.Eventually(t, "the grants to end", func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:"+port) })
	}
	if err := lab.Echoes(cut, "after it", silence); err == nil {
		t.Error(`the session of a service with on_expiry = "cut" outlived its grant`)
	}
	if err := lab.Echoes(kept, "after it", lab.Patience); err != nil {
		t.Errorf("the session of the other did not: %v", err)
	}
}
