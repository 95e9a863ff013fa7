package capture

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"sallyport/spa/lab"
)

// uplinks are two hosts joined by two cables, vc to vs and xc to xs. The gateway's routes prefer vs; its table 200 uses
// xs, and no rule selects it.
func uplinks(t *testing.T) (client, gateway *lab.Host) {
	t.Helper()
	client, gateway = lab.Pair(t)
	lab.Must(t, lab.Link(client, "xc", gateway, "xs"))
	for _, prefix := range []string{"198.51.100.2/24", "2001:db8:2::2/64", "203.0.113.9/32", "2001:db8:9::9/128"} {
		lab.Must(t, client.AddAddr("xc", prefix))
	}
	lab.Must(t, client.AddAddr("vc", "2001:db8:9::9/128"))
	lab.Must(t, gateway.AddAddr("xs", "198.51.100.1/24"))
	lab.Must(t, gateway.AddAddr("xs", "2001:db8:2::1/64"))
	lab.Must(t, gateway.Do(func() error {
		for _, name := range []string{"vs", "xs"} { // alike except for their order
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			for _, prefix := range []string{"203.0.113.0/24", "2001:db8:9::/64"} {
				_, dst, err := net.ParseCIDR(prefix)
				if err == nil {
					err = netlink.RouteAppend(&netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK})
				}
				if err != nil {
					return err
				}
			}
		}
		for _, via := range []string{"198.51.100.2", "2001:db8:2::2"} {
			if err := netlink.RouteAdd(&netlink.Route{Dst: everywhere(via), Gw: net.ParseIP(via), Table: 200}); err != nil {
				return err
			}
		}
		return nil
	}))
	return client, gateway
}

// everywhere is the destination of a default route in the family of an address.
func everywhere(via string) *net.IPNet {
	if netip.MustParseAddr(via).Is4() {
		return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// markRule is the rule that routes packets with a mark by a table, in one family.
func markRule(family int, value, mask uint32, table int) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Table = family, value, table
	if mask != 0 {
		rule.Mask = &mask
	}
	return rule
}

// respondMarked is respond with a mark of the server's own.
func respondMarked(t testing.TB, h *lab.Host, own uint32) *Responder {
	t.Helper()
	var r *Responder
	lab.Must(t, h.Do(dropAll))
	lab.Must(t, h.Do(func() (err error) {
		r, err = NewResponder(own)
		return err
	}))
	t.Cleanup(func() { lab.Must(t, r.Close()) })
	return r
}

// TestAnswerByTheUplinkOfTheKnock: if routing uses another uplink than the knock's, and a mark selects the knock's, the
// answer has that mark. Otherwise it has none and is routed normally.
func TestAnswerByTheUplinkOfTheKnock(t *testing.T) {
	const own = 0x10
	client, gateway := uplinks(t)
	s := read(t, listen(t, gateway, knocks))
	answers := read(t, listen(t, client, Config{Ports: []uint16{40000}, MaxLen: 1472}))
	r := respondMarked(t, gateway, own)
	for _, f := range []struct {
		family            int
		from, to, otherTo string
	}{
		{netlink.FAMILY_V4, "203.0.113.9", "198.51.100.1", "192.0.2.1"},
		{netlink.FAMILY_V6, "2001:db8:9::9", "2001:db8:2::1", "2001:db8::1"},
	} {
		var knocked Packet
		knockAt := func(when, out, to, in string, keep bool) {
			t.Helper()
			from := inject(t, client, out, gateway, map[string]string{"xc": "xs", "vc": "vs"}[out])
			from.send(t, from.frame(knock(addrPort(f.from, 40000), addrPort(to, 62201))))
			knocked = s.expect(t)
			lab.Must(t, r.Send(knocked, payload(200), keep))
			index, _, err := client.Interface(in)
			lab.Must(t, err)
			if p := answers.expect(t); p.Interface != index || p.From != addrPort(to, 62201) {
				t.Errorf("%s, %s: the answer came from %v by interface %d, want %s (%d)", f.to, when,
					p.From, p.Interface, in, index)
			}
		}
		rule := func(change func(*netlink.Rule) error, value, mask uint32, table int) {
			t.Helper()
			lab.Must(t, gateway.Do(func() error { return change(markRule(f.family, value, mask, table)) }))
		}
		unmarked := func(p Packet) {
			t.Helper()
			if mark := r.ways.back(p, own, false); mark != own {
				t.Errorf("the answer to %v from %v has the mark %x", p.From, p.To, mark)
			}
		}
		knockAt("no rule", "xc", f.to, "vc", false)
		rule(netlink.RuleAdd, 1, 0, 254)
		knockAt("a rule that leads elsewhere", "xc", f.to, "vc", false)
		unmarked(knocked)
		rule(netlink.RuleAdd, 2, 0, 200)
		knockAt("a rule", "xc", f.to, "xc", false)
		knockAt("a rule with no room for the own mark", "xc", f.to, "vc", true)
		xs := knocked.Interface
		knockAt("a rule, and the uplink of the routing", "vc", f.otherTo, "vc", false)
		unmarked(knocked)
		if f.family == netlink.FAMILY_V6 { // otherwise the answer would go to that uplink's router
			unmarked(Packet{From: addrPort("fe80::c", 40000), To: addrPort("fe80::5", 62201), Interface: xs})
		}
		rule(netlink.RuleAdd, 0x200, 0xf00, 200)
		knockAt("a rule with room for the own mark", "xc", f.to, "xc", true)
		rule(netlink.RuleDel, 2, 0, 200)
		knockAt("the rule with a mask", "xc", f.to, "xc", false)
		rule(netlink.RuleDel, 0x200, 0xf00, 200)
		knockAt("no rule again", "xc", f.to, "vc", false)
	}
}

// FuzzRule: no message of the kernel causes a panic.
func FuzzRule(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0, 8, 0, 10, 0, 2, 0, 0, 0})
	f.Add([]byte{})
	f.Add([]byte{2})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 10, 0, 1, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseRule(syscall.NetlinkMessage{Data: b})
		for _, a := range attributes(b, 12) {
			if len(a.value) > len(b) {
				t.Errorf("an attribute of %d bytes in %d", len(a.value), len(b))
			}
		}
	})
}
