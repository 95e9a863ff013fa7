package main

import (
	"errors"
	"io/fs"
	"testing"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// bridged puts the gateway's addresses on a bridge, with the client behind its port. If filtered is "1", bridged
// packets pass the rules of iptables and nftables (br_netfilter).
func (g *gateway) bridged(filtered string) {
	g.t.Helper()
	err := errors.Join(g.host.DelAddr("vs", "192.0.2.1/24"), g.host.DelAddr("vs", "2001:db8::1/64"),
		g.host.Bridge("br0", "vs"))
	for _, prefix := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		err = errors.Join(err, g.host.AddAddr("br0", prefix))
	}
	for _, name := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
		failed := g.host.Sysctl(name, filtered)
		switch {
		case errors.Is(failed, fs.ErrNotExist) && filtered == "1":
			lab.KernelLacks(g.t, "br_netfilter (modprobe br_netfilter)")
		case errors.Is(failed, fs.ErrPermission) && filtered == "1":
			lab.Skip(g.t, lab.NotRoot)
		case !errors.Is(failed, fs.ErrNotExist):
			err = errors.Join(err, failed)
		}
	}
	lab.Must(g.t, err)
}

// TestBridge: the server sees knocks on an address of a bridge and opens the port, whether or not bridged packets pass
// the firewall rules first.
func TestBridge(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		for _, filtered := range []string{"0", "1"} {
			t.Run(backend+", br_netfilter "+filtered, func(t *testing.T) {
				g := newGateway(t)
				g.bridged(filtered)
				g.guardBy(backend)
				g.serve(":22")
				g.start()
				for from, to := range map[string]string{"192.0.2.2": "192.0.2.1:22", "2001:db8::2": "[2001:db8::1]:22"} {
					g.wantDark(from, to, "before the knock")
					g.wantReceipt(from, g.seal(request(), sender(g.profile())), sender(g.profile()), spa.Granted)
					g.wantOpen(from, to, "after the knock")
				}
				g.wantDark("192.0.2.3", "192.0.2.1:22", "of a stranger")
			})
		}
	}
}
