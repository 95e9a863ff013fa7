package firewall

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The outer addresses of tunnels.
var tunnelHere, tunnelThere = netip.MustParseAddr("203.0.113.225"), netip.MustParseAddr("203.0.113.226")

func tunnel(make func(*world) netlink.Link) func(*world) error {
	return func(w *world) error {
		w.must(w.gw.AddAddr("ve", tunnelHere.String()+"/30"))
		w.neighbour("ve", w.evil, "ev", tunnelThere)
		link := make(w)
		if err := w.gw.Do(func() error { return netlink.LinkAdd(link) }); err != nil {
			return added(err, link.Type())
		}
		w.dev = "law0"
		return w.gw.SetUp("law0")
	}
}

func lawAttrs() netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = "law0"
	return a
}

func vxlan(w *world) netlink.Link {
	index, _, err := w.gw.Interface("ve")
	w.must(err)
	return &netlink.Vxlan{LinkAttrs: lawAttrs(), VxlanId: 7, Port: 4789, VtepDevIndex: index,
		SrcAddr: tunnelHere.AsSlice(), Group: tunnelThere.AsSlice()}
}

func geneve(w *world) netlink.Link {
	return &netlink.Geneve{LinkAttrs: lawAttrs(), ID: 7, Dport: 6081, Remote: tunnelThere.AsSlice()}
}

func ipip(w *world) netlink.Link {
	return &netlink.Iptun{LinkAttrs: lawAttrs(), Local: tunnelHere.AsSlice(), Remote: tunnelThere.AsSlice()}
}

func sit(w *world) netlink.Link {
	return &netlink.Sittun{LinkAttrs: lawAttrs(), Local: tunnelHere.AsSlice(), Remote: tunnelThere.AsSlice()}
}

func gre(w *world) netlink.Link {
	return &netlink.Gretun{LinkAttrs: lawAttrs(), Local: tunnelHere.AsSlice(), Remote: tunnelThere.AsSlice()}
}

func tunnelPacket() *packet {
	return &packet{from: netip.AddrPortFrom(tunnelThere, 4000), to: netip.AddrPortFrom(tunnelHere, 0)}
}

func etherType(ip []byte) []byte {
	if ip[0]>>4 == 6 {
		return []byte{0x86, 0xdd}
	}
	return []byte{8, 0}
}

// inUDP puts an Ethernet frame behind a tunnel's header into a datagram.
func inUDP(inner *outlet, port uint16, head []byte) func([]byte) [][]byte {
	return func(ip []byte) [][]byte {
		payload := append(append([]byte{}, head...), inner.header[:12]...)
		payload = append(append(payload, etherType(ip)...), ip...)
		return tunnelPacket().wrap(unix.IPPROTO_UDP, udpSegment(tunnelThere, tunnelHere, 4000, port, string(payload)))
	}
}

func inVXLAN(inner *outlet) func([]byte) [][]byte {
	return inUDP(inner, 4789, []byte{8, 0, 0, 0, 0, 0, 7, 0})
}

func inGeneve(inner *outlet) func([]byte) [][]byte {
	return inUDP(inner, 6081, []byte{0, 0, 0x65, 0x58, 0, 0, 7, 0})
}

func inIPIP(*outlet) func([]byte) [][]byte {
	return func(ip []byte) [][]byte {
		proto := byte(unix.IPPROTO_IPIP)
		if ip[0]>>4 == 6 {
			proto = unix.IPPROTO_IPV6
		}
		return tunnelPacket().wrap(proto, ip)
	}
}

func inGRE(*outlet) func([]byte) [][]byte {
	return func(ip []byte) [][]byte {
		return tunnelPacket().wrap(unix.IPPROTO_GRE, append(append([]byte{0, 0}, etherType(ip)...), ip...))
	}
}
