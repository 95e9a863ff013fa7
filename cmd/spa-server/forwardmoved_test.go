package main

import (
	"net"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestForwardMovedWhileKilled: a grant for a forwarded port outlives kill -9 and a change of masquerade, but does not
// lead to another place that server.toml names at the next start. A knock does.
func TestForwardMovedWhileKilled(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			g := newInner(t, backend)
			lab.Value(lab.EchoServer(g.machine, ":2300"))(t)
			g.over(endsOfBoth[0])
			g.start()
			g.knock("10m")
			killed := func(setting string) {
				g.server.stop(syscall.SIGKILL)
				g.fails(0, "set", "--config", g.dir, setting)
				g.start()
			}
			killed("service.inner.masquerade=true")
			g.ssh(t).lives(true)
			killed("service.inner.forward=198.51.100.5:2300")
			if held := g.grants(); len(held) != 0 {
				t.Errorf("%v are live, and their port leads to another place", held)
			}
			g.wantDark(g.alice, net.JoinHostPort(g.at, "2222"), "moved")
			killed("service.inner.forward=198.51.100.5:22")
			g.shut(g.alice, "moved back")
			killed("service.inner.forward=198.51.100.5:2300")
			g.knock("10m")
			killed("service.inner.masquerade=false")
			c := lab.Value(lab.Dial(g.client, g.alice, net.JoinHostPort(g.at, "2222"), lab.Patience))(t)
			defer c.Close()
			lab.Must(t, lab.Echoes(c, "hello", lab.Patience))
		})
	}
}
