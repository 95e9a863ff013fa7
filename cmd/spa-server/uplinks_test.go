package main

import (
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// twoUplinks gives the gateway a second cable to the client, and client addresses that are reachable over both. Its
// default routes use the first; connections that arrived on the second are marked, and their replies leave by it (table
// 200). Behind the first, a provider drops packets with a source of the second.
func (g *gateway) twoUplinks(fwmark uint32, mask uint32) {
	g.t.Helper()
	must := func(err error) {
		g.t.Helper()
		lab.Must(g.t, err)
	}
	must(lab.Link(g.client, "xc", g.host, "xs"))
	for _, a := range []struct {
		on          *lab.Host
		dev, prefix string
	}{
		{g.client, "xc", "198.51.100.2/24"}, {g.client, "xc", "2001:db8:2::2/64"},
		{g.client, "lo", "203.0.113.9/32"}, {g.client, "lo", "2001:db8:9::9/128"},
		{g.host, "xs", "198.51.100.1/24"}, {g.host, "xs", "2001:db8:2::1/64"},
	} {
		must(a.on.AddAddr(a.dev, a.prefix))
	}
	must(g.host.Route("default", "192.0.2.2"))
	must(g.host.Route("default", "2001:db8::2"))
	must(g.host.Do(func() error {
		for family, via := range map[int]string{netlink.FAMILY_V4: "198.51.100.2", netlink.FAMILY_V6: "2001:db8:2::2"} {
			bits := 8 * len(netip.MustParseAddr(via).AsSlice())
			to := &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
			must(netlink.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(via), Table: 200}))
			rule := netlink.NewRule()
			rule.Family, rule.Mark, rule.Table = family, fwmark, 200
			if mask != 0 {
				rule.Mask = &mask
			}
			must(netlink.RuleAdd(rule))
		}
		return nil
	}))
	g.nft(g.host, `table inet marks {
		chain save { type filter hook prerouting priority mangle; iifname xs ct state new ct mark set 2; }
		chain restore { type route hook output priority mangle; meta mark set ct mark; }
	}`)
	g.nft(g.client, `table inet provider { chain c { type filter hook prerouting priority 0
		iifname vc ip saddr != 192.0.2.0/24 drop
		iifname vc ip6 saddr 2001:db8:2::/64 drop
	}
	}`)
}

// TestTwoUplinks: a knock on the second uplink is answered there, and so is the session.
func TestTwoUplinks(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			g := newGateway(t)
			g.guardBy(backend)
			g.twoUplinks(2, 0xff)
			g.serve(":22")
			g.serve(":2222")
			g.start()
			alice := sender(g.profile())
			for from, to := range map[string]string{"203.0.113.9": "198.51.100.1", "2001:db8:9::9": "[2001:db8:2::1]"} {
				g.wantOpen(from, to+":2222", "an ordinary server on the second uplink")
				g.wantDark(from, to+":22", "before the knock")
				receipt := g.knockAt(from, to+":62201", g.seal(request(), alice), alice, lab.Patience)
				if receipt == nil || receipt.Status != spa.Granted {
					t.Fatalf("%s: got the receipt %v\nserver:\n%s", to, receipt, g.server.log())
				}
				g.wantOpen(from, to+":22", "after the knock")
			}
			g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
		})
	}
}

// TestSpoiledMarks: a routing rule that matches the whole mark stops matching once the guard has set its bit in the
// connection mark. With the change that check suggests, the session uses its uplink.
func TestSpoiledMarks(t *testing.T) {
	g := newGateway(t)
	g.twoUplinks(2, 0)
	g.serve(":22")
	g.start()
	alice := sender(g.profile())
	for _, from := range []string{"203.0.113.9", "2001:db8:9::9"} {
		to := map[bool]string{true: "198.51.100.1", false: "[2001:db8:2::1]"}[netip.MustParseAddr(from).Is4()]
		if receipt := g.knockAt(from, to+":62201", g.seal(long(), alice), alice, lab.Patience); receipt == nil ||
			receipt.Status != spa.Granted {
			t.Fatalf("%s: got the receipt %v\nserver:\n%s", to, receipt, g.server.log())
		}
		g.wantDark(from, to+":22", "with a mark that the rule does not know")
	}
	out, _ := g.run(g.host, "spa-server", "check", "--config", g.dir)
	advice := regexp.MustCompile(`(?m)^ +(ip.* rule add .* && ip.* rule del .*)$`).FindAllStringSubmatch(out, -1)
	if len(advice) != 2 {
		t.Fatalf("check says of the rules:\n%s", out)
	}
	for _, line := range advice {
		if out, code := lab.Run(t, g.host, exec.Command("sh", "-c", line[1])); code != 0 {
			t.Fatalf("%s: %s", line[1], out)
		}
	}
	for _, from := range []string{"203.0.113.9", "2001:db8:9::9"} {
		to := map[bool]string{true: "198.51.100.1:22", false: "[2001:db8:2::1]:22"}[netip.MustParseAddr(from).Is4()]
		g.wantOpen(from, to, "after what check says")
	}
	if out, _ := g.run(g.host, "spa-server", "check", "--config", g.dir); strings.Contains(out, "rule fwmark") {
		t.Errorf("check still says:\n%s", out)
	}
}
