package main

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tailscale.com/net/stun"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// browserCheck returns a browser's connectivity check with a packet.
func browserCheck(packet []byte, by spa.Sender, id byte) []byte {
	password := by.Key.ICEPassword(packet[:24])
	return lab.STUN{Packet: packet, Local: "self", Password: string(password[:]),
		Transaction: [12]byte{id}}.Check()
}

// sealShort seals a packet that fits into a check.
func (g *gateway) sealShort(r spa.Request, by spa.Sender) []byte {
	g.t.Helper()
	for {
		if packet := g.seal(r, by); len(packet) <= 188 {
			return packet
		}
	}
}

// response returns the answer to a check; nil if none comes within the time.
func (g *gateway) response(conn *net.UDPConn, check []byte, within time.Duration) []byte {
	g.t.Helper()
	_, err := conn.WriteToUDPAddrPort(check, knockAddr(conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().String()))
	lab.Must(g.t, err)
	conn.SetReadDeadline(time.Now().Add(within))
	var buf [2048]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return nil
	}
	if n > len(check) {
		g.t.Errorf("%d bytes are answered with %d", len(check), n)
	}
	return buf[:n]
}

// TestBrowserKnock: with capture.browser a browser's checks open for their sender and are each answered, as one grant
// and one line of the log; a copy from elsewhere opens nothing and gets nothing. Without it they are noise.
func TestBrowserKnock(t *testing.T) {
	g := newGateway(t)
	lab.Must(t, g.client.AddAddr("vc", "2001:db8::3/64"))
	g.serve(":22")
	alice := sender(g.profile())
	for _, mode := range []string{"sniff", "udp"} {
		g.rewrite("server.toml", `mode = "sniff"`, `mode = "`+mode+`"`)
		g.start()
		conn := g.socket("192.0.2.2")
		check := browserCheck(g.sealShort(request(), alice), alice, 1)
		if answer := g.response(conn, check, silence); answer != nil {
			t.Errorf("%s: a browser's knock is answered: %x", mode, answer)
		}
		g.wantDark("192.0.2.2", "192.0.2.1:22", "although browsers are not wanted")
		g.server.stop(syscall.SIGTERM)
		g.set("capture", "browser", "true")
		g.start()
		g.wantBrowserKnocks(alice, mode)
		g.server.stop(syscall.SIGTERM)
		g.set("capture", "browser", "false")
	}
	g.wantAudited("alice", "granted", "closed", "granted", "closed", "granted", "closed", "granted", "closed")
}

func (g *gateway) wantBrowserKnocks(alice spa.Sender, mode string) {
	g.t.Helper()
	for own, stranger := range map[string]string{"192.0.2.2": "192.0.2.3", "2001:db8::2": "2001:db8::3"} {
		door := netip.AddrPortFrom(knockAddr(own).Addr(), 22).String()
		conn, other := g.socket(own), g.socket(stranger)
		packet := g.sealShort(request(), alice)
		for id := range byte(3) {
			answer := g.response(conn, browserCheck(packet, alice, id), lab.Patience)
			got, from, err := stun.ParseResponse(answer)
			if err != nil || got[0] != id || from.Addr().String() != own {
				g.t.Fatalf("%s, %s, check %d: %v, %v\n%s", mode, own, id, from, err, g.server.log())
			}
		}
		g.wantOpen(own, door, "after a browser's knock")
		g.wantDark(stranger, door, "for a stranger")
		if answer := g.response(other, browserCheck(packet, alice, 9), silence); answer != nil {
			g.t.Errorf("%s: a copy from %s is answered: %x", mode, stranger, answer)
		}
		g.wantDark(stranger, door, "after a copy")
		r := request()
		r.Type = spa.TypeClose
		if g.response(conn, browserCheck(g.sealShort(r, alice), alice, 1), lab.Patience) == nil {
			g.t.Errorf("%s: no answer to a close", mode)
		}
		g.wantDark(own, door, "after a close")
	}
}
