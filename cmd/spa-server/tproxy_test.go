package main

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"

	"sallyport/spa/lab"

	"golang.org/x/sys/unix"
)

// handing assigns packets for ports 8022 and 8080 to the sockets of the guarded port and of a proxy.
const handing = `table inet proxy { chain in { type filter hook prerouting priority mangle
	tcp dport 8022 tproxy to :22 accept
	tcp dport 8080 tproxy to :3128 accept
}
}`

// TestTPROXY: packets that a rule assigns to a socket are dropped, since that may be the socket of a guarded port,
// unless server.toml allows them. Sockets that could be assigned packets, but are not, receive their own.
func TestTPROXY(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			g := newGateway(t)
			g.guardBy(backend)
			for _, port := range []string{":22", ":53", ":3128"} {
				g.serveTransparent(port)
			}
			g.nft(g.host, handing)
			g.start()
			client, addresses := "192.0.2.2", [2]string{"192.0.2.1", "[2001:db8::1]"}
			for i, to := range addresses {
				from := [2]string{client, "2001:db8::2"}[i]
				for _, port := range []string{":22", ":8022", ":8080"} {
					g.wantDark(from, to+port, "of a guarded port or handed to a socket")
				}
				g.wantOpen(from, to+":53", "of a transparent socket")
			}
			g.mustOpen("--source", client)
			g.wantOpen(client, addresses[0]+":22", "granted")

			g.rewrite("server.toml", `# tproxy = true`, `tproxy = true`)
			g.wantReloaded("firewall.tproxy")
			g.wantOpen(client, addresses[0]+":8080", "of a proxy, when it shall pass")
			g.wantDark("192.0.2.3", addresses[0]+":22", "guarded")
		})
	}
}

// serveTransparent runs a server with a socket that accepts packets for other addresses and ports.
func (g *gateway) serveTransparent(addr string) {
	g.t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		})
		return errors.Join(err, failed)
	}}
	lab.Must(g.t, g.host.Do(func() error {
		l, err := lc.Listen(context.Background(), "tcp", addr)
		if err != nil {
			return err
		}
		lab.Serve(g.t, l, func(net.Conn) {})
		return nil
	}))
}
