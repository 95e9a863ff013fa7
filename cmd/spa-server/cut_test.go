package main

import (
	"net"
	"syscall"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// pusher accepts connections on a port of the gateway on which only the server sends.
func (g *gateway) pusher(addr string) {
	g.t.Helper()
	var l net.Listener
	lab.Must(g.t, g.host.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	lab.Serve(g.t, l, lab.Push)
}

// pushed starts a session in which only the server sends, on an open port.
func (g *gateway) pushed(from string) net.Conn {
	g.t.Helper()
	conn := lab.Value(lab.Dial(g.client, from, "192.0.2.1:22", lab.Patience))(g.t)
	g.t.Cleanup(func() { conn.Close() })
	if !hears(conn, lab.Patience) {
		g.t.Fatal("the server does not push")
	}
	return conn
}

// outlived lets alice start such a session, and returns it when its grant is over.
func (g *gateway) outlived(t *testing.T) (session net.Conn) {
	t.Helper()
	whileGranted(t,
		func(d time.Duration) { g.mustOpen("--source", "192.0.2.2", "--for", d.String()) },
		func(within time.Duration) (err error) {
			session, err = lab.Dial(g.client, "192.0.2.2", "192.0.2.1:22", within)
			return err
		})
	t.Cleanup(func() { session.Close() })
	lab.Eventually(t, "the grant to end", func() bool { return len(g.grants()) == 0 })
	if !hears(session, lab.Patience) {
		t.Fatal("the session did not outlive its grant")
	}
	return session
}

// hears reports whether data arrives within the time, from now on.
func hears(conn net.Conn, within time.Duration) bool {
	buf := make([]byte, 1<<16)
	for range 2 { // the first reads earlier data
		conn.SetReadDeadline(time.Now().Add(within))
		if _, err := conn.Read(buf); err != nil {
			return false
		}
	}
	return true
}

// wantGone waits until no more data arrives, now or later.
func wantGone(t *testing.T, conn net.Conn, which string) {
	t.Helper()
	lab.Eventually(t, which+" to be cut", func() bool {
		for range 2 {
			if hears(conn, silence) {
				return false
			}
		}
		return true
	})
}

// TestRevokeCut: --cut ends sessions too, including those in which only the server sends, and those that outlived their
// grants.
func TestRevokeCut(t *testing.T) {
	t.Run("client", func(t *testing.T) {
		g := newGateway(t)
		bob := sender(g.enrol("bob", "ssh"))
		g.pusher(":22")
		g.start()
		g.mustOpen("--source", "192.0.2.2", "--for", "10m")
		r := request()
		r.For = 10 * time.Minute
		g.wantReceipt("192.0.2.3", g.seal(r, bob), bob, spa.Granted)
		alices, bobs := g.pushed("192.0.2.2"), g.pushed("192.0.2.3")
		g.fails(0, "revoke", "alice", "--config", g.dir)
		if !hears(alices, lab.Patience) {
			t.Error("without --cut the session ended")
		}
		wantSaid(t, g.fails(0, "revoke", "alice", "--cut", "--config", g.dir), "sessions cut: 1")
		wantGone(t, alices, "alice's session")
		if !hears(bobs, lab.Patience) {
			t.Error("bob's session ended with alice's")
		}
		g.wantDark("192.0.2.2", "192.0.2.1:22", "afterwards")
	})
	t.Run("client whose grant is over", func(t *testing.T) {
		g := newGateway(t)
		g.pusher(":22")
		g.start()
		session := g.outlived(t)
		wantSaid(t, g.fails(0, "revoke", "alice", "--cut", "--config", g.dir), "sessions cut: 1")
		wantGone(t, session, "the session")
		wantSaid(t, g.fails(1, "revoke", "alice", "--cut", "--config", g.dir), "nothing is open for alice")
	})
	t.Run("address", func(t *testing.T) {
		g := newGateway(t)
		g.pusher(":22")
		g.start()
		session := g.outlived(t)
		g.server.stop(syscall.SIGKILL) // now no one remembers whose it was
		g.start()
		if !hears(session, lab.Patience) {
			t.Fatal("the session did not outlive the server")
		}
		wantSaid(t, g.fails(0, "revoke", "192.0.2.2", "--cut", "--config", g.dir), "sessions cut: 1")
		wantGone(t, session, "the session")
	})
}
