package main

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestForgottenSession: a session that connection tracking has forgotten, by a flush or a short timeout, hangs once its
// grant is over, and the client's next knock revives it.
func TestForgottenSession(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			g := newGateway(t)
			g.guardBy(backend)
			g.serve(":22")
			g.start()
			alice := sender(g.profile())
			sessions := make(map[string]net.Conn)
			knock := func(what spa.Type, want spa.Status) {
				t.Helper()
				for _, from := range []string{"192.0.2.2", "2001:db8::2"} {
					r := request()
					r.Type = what
					g.wantReceipt(from, g.seal(r, alice), alice, want)
				}
			}
			knock(spa.TypeOpen, spa.Granted)
			for from, to := range map[string]string{"192.0.2.2": "192.0.2.1:22", "2001:db8::2": "[2001:db8::1]:22"} {
				conn := lab.Value(g.session(from, to, lab.Patience))(t)
				defer conn.Close()
				sessions[from] = conn
			}
			knock(spa.TypeClose, spa.Closed)
			for from, conn := range sessions {
				if err := lab.Echoes(conn, "after the grant", lab.Patience); err != nil {
					t.Fatalf("the session from %s ended with its grant: %v", from, err)
				}
			}
			lab.Must(t, g.host.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }))
			for from, conn := range sessions {
				if lab.Echoes(conn, "forgotten", silence) == nil {
					t.Errorf("the session from %s continues, although nothing knows of its grant", from)
				}
			}
			knock(spa.TypeOpen, spa.Granted)
			for from, conn := range sessions {
				if err := comesBack(conn, "forgotten"); err != nil {
					t.Errorf("the session from %s did not come back with the next knock: %v\nserver:\n%s", from, err, g.server.log())
				}
				if err := lab.Echoes(conn, "again", lab.Patience); err != nil {
					t.Errorf("the session from %s: %v", from, err)
				}
			}
		})
	}
}

// comesBack waits for earlier data that is echoed only now.
func comesBack(conn net.Conn, want string) error {
	conn.SetReadDeadline(time.Now().Add(lab.Patience))
	heard := make([]byte, len(want))
	_, err := io.ReadFull(conn, heard)
	return err
}
