package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/keys/service"
)

// way is how packets get from the stranger to a guarded port.
type way struct {
	name string
	// first makes interfaces, before there are addresses. Its error is why this kernel does not support the way.
	first func(*world) error
	build func(*world)

	to          []string // addresses of the guarded ports, besides "gateway"
	listed      []string // the addresses that Config.Targets lists
	only4       bool
	only6       bool
	aliases     bool // open ports lead to guarded ones
	fronts      bool // guarded ports lead to the machine behind
	forwards    bool // the guard itself leads them there, or to another port if no machine is listed
	masks       bool // the machine sees the gateway's address
	transparent bool // servers accept packets for other addresses
	flat        bool // a link without Ethernet
	bridged     bool // the second outlet is for other machines of the same network
	// known returns what no guard can prevent by this way, and why; it is reported.
	known func(kind, *lawState, *lawCase, sign) string

	bare bool // only the guard uses connection tracking
	main bool // a short run also tries more states, and both ways of closing
}

// routes reports whether the gateway forwards packets to the machine behind.
func (y *way) routes() bool {
	return strings.HasPrefix(y.name, "routed") || y.name == "masqueraded" || y.fronts
}

// guardsBehind reports whether the ports of the machine behind are guarded.
func (y *way) guardsBehind() bool { return y.fronts || len(y.listed) > 0 }

// ownAddresses are addresses of the gateway besides its first, in its own network.
var ownAddresses = []string{"gateway's other", "gateway, link-local"}

// lawWays returns all ways.
func lawWays() []*way { return slices.Concat(plainWays(), rewrittenWays(), linkWays(), tunnelWays()) }

// plainWays lead to a guarded port unchanged.
func plainWays() []*way {
	local := ownAddresses
	all := []string{"gateway's other", "gateway, link-local", "multicast", "broadcast", "all ones", "loopback"}
	return []*way{
		{name: "delivered", to: all, main: true},
		{name: "delivered, lax about sources", to: all, build: lax},
		{name: "delivered, no other firewall", to: local, bare: true, known: unseen},
		{name: "routed", to: append(all, "gateway, anycast"), build: router, main: true},
		{name: "routed to a listed machine", to: append(local, "behind"), listed: []string{"behind"}, build: router,
			main: true},
		{name: "routed to a listed machine, strict about sources", to: []string{"behind"}, listed: []string{"behind"},
			build: func(w *world) {
				router(w)
				w.sysctls("net.ipv4.conf.all.rp_filter=1")
			}},
		{name: "masqueraded", to: append(local, "behind"), listed: []string{"behind"}, build: masquerade},
		{name: "bridged", to: local, first: bridge(false), bridged: true},
		{name: "bridged with br_netfilter", to: local, first: bridge(true), bridged: true, main: true},
		{name: "bridged with br_netfilter to a listed machine", to: []string{"behind"}, listed: []string{"behind"},
			first: bridge(true), bridged: true},
		{name: "second link", to: local, build: secondLink},
		{name: "any address of a prefix", to: []string{"gateway, AnyIP"}, build: anyIP},
		{name: "addresses local by another table", to: []string{"gateway, other table"}, build: otherTable},
		{name: "DNAT of a guarded port to a machine", fronts: true, build: fronts, main: true, known: goesOut},
		{name: "DNAT of a guarded port to a listed machine", fronts: true, to: []string{"behind"},
			listed: []string{"behind"}, build: fronts},
		{name: "a guarded port forwarded to a machine", fronts: true, forwards: true, to: []string{"behind"},
			listed: []string{"behind"}, build: router},
		{name: "a guarded port forwarded to a machine, masqueraded", fronts: true, forwards: true, masks: true,
			to: []string{"behind"}, listed: []string{"behind"}, build: router, known: refusesItself},
		{name: "a guarded port forwarded to a bridged machine", fronts: true, forwards: true, to: []string{"behind"},
			listed: []string{"behind"}, first: bridge(true), bridged: true},
		{name: "a guarded port forwarded to a bridged machine, masqueraded", fronts: true, forwards: true, masks: true,
			to: []string{"behind"}, listed: []string{"behind"}, first: bridge(true), bridged: true, known: refusesItself},
		{name: "a guarded port forwarded to another", fronts: true, forwards: true, to: local, build: router},
	}
}

// rewrittenWays lead through another tool's changes: of addresses, ports, marks or tracking.
func rewrittenWays() []*way {
	return []*way{
		{name: "redirect", aliases: true, build: natted("redirect to :%d", "redirect to :%d")},
		{name: "DNAT to another own address", aliases: true,
			build: natted("dnat ip to 192.0.2.1:%d", "dnat ip6 to [2001:db8::1]:%d")},
		{name: "DNAT to loopback", aliases: true, only4: true, build: func(w *world) {
			natted("dnat ip to 127.0.0.1:%d", "")(w)
			w.sysctls("net.ipv4.conf.all.route_localnet=1")
		}},
		{name: "DNAT to a listed machine", aliases: true, to: []string{"behind"}, listed: []string{"behind"},
			build: func(w *world) {
				natted("dnat ip to 198.51.100.5:%d", "dnat ip6 to [2001:db8:1::5]:%d")(w)
				router(w)
			}},
		{name: "rewritten by another table", aliases: true, build: rewritten},
		{name: "TPROXY", aliases: true, transparent: true, build: tproxy, known: handedBefore},
		{name: "another tool sets all marks", aliases: true, build: marks, known: foreignMark},
		{name: "another tool sets all marks of a listed machine", to: []string{"behind"}, listed: []string{"behind"},
			build: func(w *world) {
				router(w)
				w.rules(setsMarks)
			}, known: foreignMark},
		{name: "from the listed machine itself", to: ownAddresses, listed: []string{"behind"}, build: fromBehind},
		{name: "untracked by another tool", build: untracked, known: unseen},
	}
}

// linkWays lead through links of other kinds.
func linkWays() []*way {
	local := ownAddresses
	return []*way{
		{name: "macvlan", to: local, first: macvlan},
		{name: "ipvlan", to: local, first: ipvlan},
		{name: "VRF", to: local, first: vrf},
		{name: "TUN", to: local, first: tun, flat: true},
		{name: "segment routing", to: local, build: segments},
		{name: "ingress redirected to ifb", to: local, first: ifb},
	}
}

// tunnelWays lead through tunnels.
func tunnelWays() []*way {
	var ways []*way
	for _, t := range []struct {
		name string
		make func(*world) netlink.Link
		wrap func(*outlet) func([]byte) [][]byte
	}{
		{"VXLAN", vxlan, inVXLAN}, {"Geneve", geneve, inGeneve}, {"ipip", ipip, inIPIP}, {"sit", sit, inIPIP},
		{"GRE", gre, inGRE},
	} {
		ways = append(ways, &way{name: t.name + " tunnel", to: ownAddresses, flat: t.name != "VXLAN" && t.name != "Geneve",
			only4: t.name == "ipip", only6: t.name == "sit", first: tunnel(t.make), build: func(w *world) {
				o := w.outlet(w.evil, "ev", "ve")
				o.wrap = t.wrap(w.outlet(w.evil, "ev", w.dev))
				w.outlets = append(w.outlets, o)
			}})
	}
	return ways
}

// unseen is known of a flow in which only the server has sent anything that connection tracking sees: it counts as
// begun by the host.
func unseen(_ kind, s *lawState, c *lawCase, _ sign) string {
	if s.away && c.proto == service.UDP && c.serverBegins() {
		return "connection tracking did not see which side sent first while the guard was away"
	}
	return ""
}

// handedBefore is known of TPROXY: no hook sees the port of the socket that a packet is handed to, and once the guard
// is back, packets of a flow that began without it do not begin a flow.
func handedBefore(_ kind, s *lawState, c *lawCase, _ sign) string {
	switch {
	case !c.isByOtherPort():
	case c.proto == service.TCP && c.steps[0].back && c.steps[len(c.steps)-1].shape != shapeSYN:
		return "a segment that begins nothing, in a flow begun in the name of this host's open port: the listener refuses it"
	case s.away || !s.loaded:
		return "the flow was handed to a socket while there was no guard"
	case s.ex && c.proto == service.UDP && slices.ContainsFunc(c.steps,
		func(s step) bool { return s.shape == shapeServer && !s.after }):
		return "the server began a session while the client had a grant"
	}
	return ""
}

// foreignMark is known of a tool that sets our bit while the guard is away.
func foreignMark(_ kind, s *lawState, _ *lawCase, _ sign) string {
	if s.away || s.ex || !s.loaded {
		return "another tool sets the mark of flows that the guard has not admitted, or no longer admits"
	}
	return ""
}

// refusesItself is known of masquerading: once connection tracking has forgotten a flow, what the machine sends in it
// is for a port of the gateway, which answers with a reset of its own.
func refusesItself(_ kind, s *lawState, c *lawCase, got sign) string {
	if got == signHeard && c.proto == service.TCP && s.ex && c.serverBegins() {
		return "the gateway resets a masqueraded session that connection tracking has forgotten"
	}
	return ""
}

// goesOut is known of iptables, which has no chain after source translation: packets of a machine that DNAT leads to
// leave in a session that the guard no longer lets in.
func goesOut(k kind, s *lawState, c *lawCase, got sign) string {
	published := strings.HasSuffix(c.steps[0].door.name, publishedPort)
	if got == signLeft && k.programs != "" && published && !c.steps[0].after &&
		(s.away || c.cut && s.ex && s.end != endCut) {
		return "by iptables the machine behind still speaks in a session that is no longer let in"
	}
	return ""
}

func lax(w *world) {
	for _, dev := range []string{"all", "default", w.dev} {
		for _, what := range []string{"accept_local=1", "route_localnet=1", "rp_filter=0", "accept_source_route=1"} {
			w.sysctls("net.ipv4.conf." + dev + "." + what)
		}
		w.sysctls("net.ipv6.conf."+dev+".accept_source_route=1", "net.ipv6.conf."+dev+".seg6_enabled=1")
	}
}

func router(w *world) { w.must(w.gw.Forward()) }

func masquerade(w *world) {
	router(w)
	w.rules(`table inet law { chain out { type nat hook postrouting priority srcnat; oifname { "ve", "vs" } masquerade; }
}`)
}

// bridge makes the gateway a switch between the stranger, which has a second cable to it, and the machine behind.
func bridge(filtered bool) func(*world) error {
	return func(w *world) error {
		w.must(w.gw.Bridge("br0", "ve", "vt", "in"))
		w.dev, w.inside = "br0", "br0"
		w.must(w.inner.AddAddr("eth0", "203.0.113.5/32"))
		w.must(w.inner.AddAddr("eth0", "2001:db8:e::5/128"))
		value := map[bool]string{false: "0", true: "1"}[filtered]
		for _, name := range []string{"iptables", "ip6tables"} {
			if err := w.gw.Sysctl("net.bridge.bridge-nf-call-"+name, value); err != nil && filtered {
				return errors.New("br_netfilter")
			}
		}
		if filtered { // frames with a VLAN tag too
			w.must(w.gw.Sysctl("net.bridge.bridge-nf-filter-vlan-tagged", "1"))
		}
		through := w.outlet(w.evil, "ev", "br0")
		_, mac, err := w.evil.Interface("et")
		w.must(err)
		if len(w.way.listed) > 0 {
			_, mac, err = w.inner.Interface("eth0")
			w.must(err)
			router(w) // its replies go through the gateway
		}
		copy(through.header, mac)
		w.outlets = append(w.outlets, w.outlet(w.evil, "ev", "br0"), through)
		return nil
	}
}

// fromBehind is a listed machine that attacks its gateway.
func fromBehind(w *world) {
	router(w)
	w.sysctls("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.in.rp_filter=0")
	w.must(w.gw.AddAddr("in", "fe80::1/64"))
	w.outlets = append(w.outlets, w.outlet(w.inner, "eth0", "in"))
	w.wires = append(w.wires, w.tap(w.inner, "eth0"))
}

func secondLink(w *world) {
	w.sysctls("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.vt.rp_filter=0")
	w.outlets = append(w.outlets, w.outlet(w.evil, "et", "vt"))
	w.neighbour("vt", w.evil, "et", addressOf("link-local", true), addressOf("client's link-local", true))
}

func anyIP(w *world) {
	w.must(w.gw.Local("203.0.113.128/27"))
	w.must(w.gw.Local("2001:db8:a::/64"))
}

// otherTable makes addresses local through a routing table of the administrator's.
func otherTable(w *world) {
	w.must(w.onLink("lo", func(lo netlink.Link) error {
		for _, p := range []string{"203.0.113.160/27", "2001:db8:b::/64"} {
			prefix := netip.MustParsePrefix(p)
			dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: 100,
				Scope: netlink.SCOPE_HOST}); err != nil {
				return err
			}
		}
		return lookup100(0)
	}))
}

// lookup100 makes packets with a mark use table 100 first.
func lookup100(mark uint32) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		r := netlink.NewRule()
		r.Table, r.Family, r.Priority = 100, family, 50
		if mark != 0 {
			r.Mark = mark
		}
		if err := netlink.RuleAdd(r); err != nil {
			return err
		}
	}
	return nil
}

func fronts(w *world) {
	router(w)
	text := ""
	for _, s := range lawServices {
		text += fmt.Sprintf("meta nfproto ipv4 fib daddr type local %v dport %d dnat ip to 198.51.100.5:%d\n",
			s.proto, s.front, s.port)
		text += fmt.Sprintf("meta nfproto ipv6 fib daddr type local %v dport %d dnat ip6 to [2001:db8:1::5]:%d\n",
			s.proto, s.front, s.port)
	}
	w.rules("table inet law { chain in { type nat hook prerouting priority dstnat;\n" + text + "}\n}")
}

// natted leads aliases to guarded ports with nft's verdicts v4 and v6, in which %d is the port.
func natted(v4, v6 string) func(*world) {
	return func(w *world) {
		text := ""
		for _, s := range lawServices {
			text += fmt.Sprintf("meta nfproto ipv4 %v dport %d "+v4+"\n", s.proto, s.alias, s.port)
			if v6 != "" {
				text += fmt.Sprintf("meta nfproto ipv6 %v dport %d "+v6+"\n", s.proto, s.alias, s.port)
			}
		}
		w.rules("table inet law { chain in { type nat hook prerouting priority dstnat;\n" + text + "}\n}")
	}
}

func rewritten(w *world) {
	in, out := "", ""
	for _, s := range lawServices {
		in += fmt.Sprintf("%[1]v dport %[2]d %[1]v dport set %[3]d\n", s.proto, s.alias, s.port)
	}
	w.rules("table inet law { chain in { type filter hook prerouting priority -50;\n" + in + "} \n" + out + "}")
}

func tproxy(w *world) {
	router(w) // a packet that claims to come from one of its ports begins a flow, and the reply is what is handed over
	text := ""
	for _, s := range lawServices {
		text += fmt.Sprintf("meta nfproto ipv4 %v dport %d tproxy ip to :%d meta mark set 1 accept\n",
			s.proto, s.alias, s.port)
		text += fmt.Sprintf("meta nfproto ipv6 %v dport %d tproxy ip6 to :%d meta mark set 1 accept\n",
			s.proto, s.alias, s.port)
	}
	w.rules("table inet law { chain in { type filter hook prerouting priority mangle;\n" + text + "}\n}")
	w.must(w.onLink("lo", func(lo netlink.Link) error {
		for _, any := range []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}} {
			if err := netlink.RouteAdd(&netlink.Route{Dst: any, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: 100,
				Scope: netlink.SCOPE_HOST}); err != nil {
				return err
			}
		}
		return lookup100(1)
	}))
}

// marks is a tool that uses all bits of the connection mark.
func marks(w *world) {
	router(w)
	natted("redirect to :%d", "redirect to :%d")(w)
	w.rules(setsMarks)
}

const setsMarks = "table inet marks { chain in { type filter hook prerouting priority mangle - 10; ct " +
	"mark set 0xffffffff\n}\n}"

func untracked(w *world) {
	w.rules(`table inet law { chain in { type filter hook prerouting priority raw; iifname "ve" notrack; }
}`)
}

// added returns an error for something that this kernel does not support.
func added(err error, what string) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return errors.New(what)
	}
	return err
}

// over makes an interface of the gateway's on top of ve, the one towards the stranger.
func over(w *world, what string, make func(netlink.LinkAttrs) netlink.Link) error {
	err := w.onLink("ve", func(ve netlink.Link) error {
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = "law0", ve.Attrs().Index
		return netlink.LinkAdd(make(a))
	})
	if err != nil {
		return added(err, what)
	}
	w.dev = "law0"
	return w.gw.SetUp("law0")
}

func macvlan(w *world) error {
	return over(w, "macvlan", func(a netlink.LinkAttrs) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}
	})
}

func ipvlan(w *world) error {
	return over(w, "ipvlan", func(a netlink.LinkAttrs) netlink.Link {
		return &netlink.IPVlan{LinkAttrs: a, Mode: netlink.IPVLAN_MODE_L2}
	})
}

func vrf(w *world) error {
	err := w.onLink("ve", func(ve netlink.Link) error {
		a := netlink.NewLinkAttrs()
		a.Name = "law0"
		v := &netlink.Vrf{LinkAttrs: a, Table: 10}
		return errors.Join(netlink.LinkAdd(v), netlink.LinkSetMaster(ve, v), netlink.LinkSetUp(v))
	})
	if err != nil {
		return added(err, "vrf")
	}
	w.sysctls("net.ipv4.tcp_l3mdev_accept=1", "net.ipv4.udp_l3mdev_accept=1")
	return nil
}

// tun is a program's tunnel, such as a VPN: packets that the program writes arrive from it.
func tun(w *world) error {
	var fd int
	w.must(w.gw.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return nil
		}
		r, err := unix.NewIfreq("law0")
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}))
	if fd < 0 {
		return errors.New("tun")
	}
	w.Cleanup(func() { unix.Close(fd) })
	w.dev = "law0"
	w.wires = append(w.wires, &wire{fd: fd, flat: true})
	w.outlets = append(w.outlets, &outlet{fd: fd, flat: true})
	return w.gw.SetUp("law0")
}

// segments is IPv6 segment routing: a packet to the gateway with a routing header at its end, which contains another
// packet, for IPv4 or IPv6.
func segments(w *world) {
	for _, dev := range []string{"all", "ve"} {
		w.sysctls("net.ipv6.conf." + dev + ".seg6_enabled=1")
	}
	o := w.outlet(w.evil, "ev", "ve")
	o.wrap = func(ip []byte) [][]byte {
		outer := packet{pack: packRouting, from: netip.AddrPortFrom(addressOf("stranger", true), 0),
			to: netip.AddrPortFrom(addressOf("gateway", true), 0)}
		proto := byte(unix.IPPROTO_IPIP)
		if ip[0]>>4 == 6 {
			proto = unix.IPPROTO_IPV6
		}
		return outer.wrap(proto, ip)
	}
	w.outlets = append(w.outlets, o)
}

// ifb is traffic shaping for incoming packets.
func ifb(w *world) error {
	err := w.onLink("ve", func(ve netlink.Link) error {
		a := netlink.NewLinkAttrs()
		a.Name = "law0"
		i := &netlink.Ifb{LinkAttrs: a}
		if err := errors.Join(netlink.LinkAdd(i), netlink.LinkSetUp(i)); err != nil {
			return err
		}
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ve.Attrs().Index,
			Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}}
		if err := netlink.QdiscAdd(ingress); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: ve.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0),
				Priority: 1, Protocol: unix.ETH_P_ALL},
			Actions: []netlink.Action{netlink.NewMirredAction(i.Attrs().Index)},
		})
	})
	return added(err, "ifb, or redirection to it")
}
