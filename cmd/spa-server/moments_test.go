package main

import (
	"net"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// whileGranted requests a short grant and uses it while it lasts. If the machine was too slow for that, it requests it
// again for longer.
func whileGranted(t *testing.T, grant func(d time.Duration), use func(within time.Duration) error) {
	t.Helper()
	for d := 2 * time.Second; ; d *= 2 {
		begun := time.Now()
		grant(d)
		err := use(d)
		if err == nil {
			return
		}
		if time.Since(begun) < d || d > lab.Patience/2 {
			t.Fatalf("granted for %v: %v", d, err)
		}
	}
}

// session connects, and keeps the connection until the test ends.
func (g *gateway) session(from, to string, within time.Duration) (net.Conn, error) {
	conn, err := lab.Dial(g.client, from, to, within)
	if err == nil {
		g.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// keepFresh makes packets that were sealed early valid for as long as a test may take. It is for tests of other things
// than the window.
func (g *gateway) keepFresh() {
	g.t.Helper()
	g.set("", "window", `"5m"`)
}

// freshGateway returns a running gateway that keeps packets fresh and serves ssh, and alice.
func freshGateway(t *testing.T) (*gateway, spa.Sender) {
	t.Helper()
	g := newGateway(t)
	g.keepFresh()
	g.serve(":22")
	g.start()
	return g, sender(g.profile())
}

// latest is a request of the fastest clock that is accepted, with keepFresh: by any clock, it was not made before what
// happened a moment ago.
func latest() spa.Request {
	r := request()
	r.Time = time.Now().Add(5*time.Minute - time.Millisecond)
	return r
}

// long is a request to open ssh for longer than a test may take.
func long() spa.Request {
	r := request()
	r.For = 10 * time.Minute
	return r
}

// await returns at the given time.
func (g *gateway) await(moment time.Time) {
	g.t.Helper()
	lab.Eventually(g.t, "the moment to come", func() bool { return time.Now().After(moment) })
}
