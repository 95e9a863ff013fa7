package main

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// unraw is a server without the right to open raw and packet sockets.
func (g *gateway) unraw() *exec.Cmd {
	g.t.Helper()
	lab.NeedProgram(g.t, "setpriv", "apt-get install util-linux")
	return exec.Command("setpriv", "--bounding-set=-net_raw", "--", filepath.Join(bin, "spa-server"), "run",
		"--config", g.dir)
}

// TestBound: with capture.mode = "udp", knocks open, close and are answered as by a sniffer, a stranger and a copy get
// nothing, and the guard stays when the server is killed. nftables needs no CAP_NET_RAW for that, iptables does.
func TestBound(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		for _, gate := range []string{"192.0.2.1", "2001:db8::1"} {
			t.Run(backend+" "+gate, func(t *testing.T) {
				t.Parallel()
				g := newGateway(t)
				g.guardBy(backend)
				g.rewrite("server.toml", `mode = "sniff"`, `mode = "udp"`)
				g.serve(":22")
				start := func() {
					g.launch(g.unraw())
					lab.Eventually(t, "the server to be ready", func() bool {
						return strings.Contains(g.server.log(), "msg=ready")
					})
				}
				if backend == "iptables" {
					if out, _ := lab.Run(t, g.host, g.unraw()); !strings.Contains(out, "lacking CAP_NET_RAW") {
						t.Errorf("without CAP_NET_RAW:\n%s", out)
					}
					start = func() { g.start() }
				}
				start()
				alice := sender(g.profile())
				own, stranger := "192.0.2.2", "192.0.2.3"
				if strings.Contains(gate, ":") {
					own, stranger = "2001:db8::2", "2001:db8::3"
					lab.Must(t, g.client.AddAddr("vc", "2001:db8::3/64"))
				}
				door := netip.AddrPortFrom(netip.MustParseAddr(gate), 22).String()
				knock := netip.AddrPortFrom(netip.MustParseAddr(gate), 62201).String()
				g.wantDark(own, door, "before the knock")
				packet := g.seal(request(), alice)
				receipt := g.knockAt(own, knock, packet, alice, lab.Patience)
				if receipt == nil || receipt.Status != spa.Granted {
					t.Fatalf("got %+v\n%s", receipt, g.server.log())
				}
				g.wantOpen(own, door, "after the knock")
				g.wantDark(stranger, door, "for a stranger")
				if copied := g.knockAt(stranger, knock, packet, alice, silence); copied != nil {
					t.Errorf("a copy is answered: %+v", copied)
				}
				g.wantDark(stranger, door, "after a copy")
				if flows := g.flows(); strings.Contains(flows, "port=62201") {
					t.Errorf("knocks fill connection tracking:\n%s", flows)
				}
				g.server.stop(syscall.SIGKILL)
				g.wantDark(stranger, door, "when the server is killed")
				start()
				r := request()
				r.Type = spa.TypeClose
				if receipt := g.knockAt(own, knock, g.seal(r, alice), alice, lab.Patience); receipt == nil ||
					receipt.Status != spa.Closed {
					t.Fatalf("got %+v\n%s", receipt, g.server.log())
				}
				g.wantDark(own, door, "after the close")
			})
		}
	}
}

// TestBoundIsReported: check and status say what a bound port gives up, and which firewall drops its packets.
func TestBoundIsReported(t *testing.T) {
	g := newGateway(t)
	g.rewrite("server.toml", `mode = "sniff"`, `mode = "udp"`)
	g.serve(":22")
	g.nft(g.host, `table inet host { chain in { type filter hook input priority 0; policy drop; tcp dport 22 accept; }; }`)
	g.start()
	out, code := g.run(g.host, "spa-server", "check", "--config", g.dir)
	for _, want := range []string{`"udp" binds udp/62201`, "drops knocks to udp/62201"} {
		if !strings.Contains(out, want) || code != 1 {
			t.Errorf("check exits with %d and does not report %s:\n%s", code, want, out)
		}
	}
	if out := g.must("spa-server", "status", "--config", g.dir); !strings.Contains(out, "bound") {
		t.Errorf("status does not report it:\n%s", out)
	}
}
