package main

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

const spentBefore = "unspent: nonce already spent"

// forged sends packets with wrong tags to the knock port.
func (g *gateway) forged(n int) {
	g.t.Helper()
	conn := g.socket("192.0.2.3")
	for i := range n {
		packet := make([]byte, 200)
		packet[0], packet[1] = byte(i), byte(i>>8)
		_, err := conn.WriteToUDPAddrPort(packet, netip.MustParseAddrPort("192.0.2.1:62201"))
		lab.Must(g.t, err)
	}
}

// hasXDP reports whether an XDP program is on the gateway's interface.
func (g *gateway) hasXDP() bool {
	g.t.Helper()
	var attached bool
	lab.Must(g.t, g.host.Do(func() error {
		l, err := netlink.LinkByName("vs")
		attached = err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
		return err
	}))
	return attached
}

// TestGate: with each gate a knock opens, forged packets and copies are counted as without one, after the gate key was
// rotated the new key works, and after kill -9 nothing is left on the interface.
func TestGate(t *testing.T) {
	for _, gate := range []string{"none", "auto", "socket", "xdp"} {
		t.Run(gate, func(t *testing.T) {
			g := newGateway(t)
			g.set("capture", "gate", `"`+gate+`"`)
			g.serve(":22")
			g.start()
			st := g.status()
			if st.Gate.Kernel == "none" && gate != "none" {
				lab.KernelLacks(t, "eBPF: "+strings.Join(st.Gate.Why, "; "))
			}
			want := map[string]string{"auto": "socket"}[gate]
			if want == "" {
				want = gate
			}
			if st.Gate.Kernel != want || len(st.Gate.Why) > 0 ||
				slices.Contains(st.Gate.XDP, "vs (native)") != (gate == "xdp") || g.hasXDP() != (gate == "xdp") {
				t.Fatalf("the gate is %+v", st.Gate)
			}
			alice := sender(g.profile())
			packet := g.seal(request(), alice)
			g.wantReceipt("192.0.2.2", packet, alice, spa.Granted)
			g.mustOpen("--source", "192.0.2.2")

			const forged, copies = 5000, 5
			for range copies {
				g.send("192.0.2.2", packet)
				lab.Eventually(t, "the first copy", func() bool { return g.status().Decided[spentBefore] > 0 })
			}
			g.forged(forged)
			lab.Eventually(t, "the counts", func() bool {
				st = g.status()
				return st.Decided["unopened: wrong gate tag"] == forged && st.Decided[spentBefore] == copies
			})
			if kernel := st.Capture.Gate; gate == "none" && kernel != (control.GateDrops{}) ||
				gate != "none" && (kernel.Tag != forged || kernel.Spent < copies-2) ||
				(gate == "xdp") != (kernel.XDP > 0) || st.Capture.Received != forged+copies+2 {
				t.Errorf("counts %+v", st.Capture)
			}

			g.must("spa-keygen", "rotate-gate", "--config", g.dir)
			g.takeOver()
			g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted) // with the old key
			alice.Gate = lab.Value(keys.ReadGate(filepath.Join(g.dir, "gate.key")))(t).Current
			g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
			g.server.stop(syscall.SIGKILL)
			lab.Eventually(t, "the interface to be free", func() bool { return !g.hasXDP() })
			g.wantDark("192.0.2.3", "192.0.2.1:22", "after kill -9")
		})
	}
}

// TestGateWithoutRights: without the right to load eBPF programs a server works as with capture.gate = "none", and says
// why, in status and, unless the gate is "auto", in its log.
func TestGateWithoutRights(t *testing.T) {
	setpriv := lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	for _, gate := range []string{"auto", "xdp"} {
		g := newGateway(t)
		g.set("capture", "gate", `"`+gate+`"`)
		g.serve(":22")
		g.launch(exec.Command(setpriv, "--bounding-set=-bpf,-sys_admin", "--", filepath.Join(bin, "spa-server"), "run",
			"--config", g.dir))
		lab.Eventually(t, "the server to be ready", func() bool { return strings.Contains(g.server.log(), "msg=ready") })
		if st := g.status().Gate; st.Kernel != "none" || len(st.Why) != 1 {
			t.Errorf("the gate is %+v", st)
		}
		warned := strings.Contains(g.server.log(), "the kernel gate is not as capture.gate says")
		if warned != (gate == "xdp") {
			t.Errorf("gate %s: warned: %v\n%s", gate, warned, g.server.log())
		}
		g.mustOpen("--source", "192.0.2.2")
		wantSaid(t, g.must("spa-server", "status", "--config", g.dir), "in the server: loading an eBPF program needs CAP_BPF")
		g.server.stop(syscall.SIGKILL)
	}
}
