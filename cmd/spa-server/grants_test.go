package main

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestThousandGrants: grants are listed with their owners, even after kill -9 and a restart, and end on time with the
// server dead.
func TestThousandGrants(t *testing.T) {
	g := newGateway(t)
	g.rewrite("server.toml", "grants = 64", "grants = 2000")
	g.rewrite("server.toml", "grants_per_hour = .*", "grants_per_hour = 10000")
	g.rewrite("server.toml", `ports = \["tcp/80"\]`, `ports = ["tcp/10000-10127"]`)
	g.rewrite("clients/alice.toml", `allow = .*`, `allow = ["tcp/10000-10127"]`)
	owners := []spa.Sender{sender(g.profile()), sender(g.enrol("bob", "tcp/10000-10127"))}
	g.keepFresh()
	g.start()
	const last = 10 * time.Minute
	g.openThousand(owners, last, request)
	want := g.grants()
	if len(want) != 1024 || g.status().Grants != 1024 {
		t.Fatalf("%d grants listed, %d counted, want 1024", len(want), g.status().Grants)
	}
	owned := map[string]int{}
	for _, grant := range want {
		owned[grant.Client+" "+grant.Source.String()]++
		if len(grant.Ports) != 1 || grant.Ports[0] != grant.Service || time.Until(grant.Until) > last {
			t.Fatalf("got %+v", grant)
		}
	}
	if len(owned) != 8 || owned["alice 192.0.2.2"] != 128 || owned["bob 192.0.2.3"] != 128 {
		t.Errorf("owners: %v", owned)
	}
	g.server.stop(syscall.SIGKILL)
	g.start()
	if got := g.grants(); !slices.EqualFunc(got, want, sameGrant) {
		t.Errorf("after kill -9 and a restart: %d grants, want the same %d", len(got), len(want))
	}
	for _, owner := range []string{"alice", "bob"} {
		g.fails(0, "revoke", owner, "--config", g.dir)
	}
	ends := g.openThousand(owners, 3*time.Second, latest) // made after the revocation by any clock
	g.server.stop(syscall.SIGKILL)
	lab.Eventually(t, "the kernel to end all grants", func() bool { return g.elements("grants4") == 0 })
	if early := time.Until(ends); early > time.Second {
		t.Errorf("all have ended %v early", early)
	}
}

// openThousand opens 1,024 ports, and returns when the last of them is shut again.
func (g *gateway) openThousand(owners []spa.Sender, last time.Duration, made func() spa.Request) (ends time.Time) {
	g.t.Helper()
	for i := 2; i <= 9; i++ {
		from := fmt.Sprintf("192.0.2.%d", i)
		for port := uint16(10000); port < 10128; port += 8 {
			r := made()
			r.For, r.Services = last, nil
			for n := range uint16(8) {
				r.Services = append(r.Services, service.Service{Proto: service.TCP, Port: port + n})
			}
			receipt := g.wantReceipt(from, g.seal(r, owners[i%2]), owners[i%2], spa.Granted)
			ends = receipt.Time.Add(receipt.Services[0].For)
		}
	}
	return ends
}

// sameGrant reports whether a is what a restart makes of b: it may end earlier, by as long as the start paused between
// reading the two clocks, but never later.
func sameGrant(a, b control.Grant) bool {
	earlier := b.Until.Sub(a.Until)
	return a.Client == b.Client && a.Service == b.Service && a.Source == b.Source && slices.Equal(a.Ports, b.Ports) &&
		earlier > -time.Millisecond && earlier < lab.Patience
}
