package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link joins two hosts by a cable: devA in a and devB in b, both up and ready to carry packets, with their link-local
// addresses. Both ends may be in one host, for an interface that leads nowhere else.
func Link(a *Host, devA string, b *Host, devB string) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: devA, TxQLen: -1},
		PeerName:      devB,
		PeerNamespace: netlink.NsFd(b.ns.Fd()),
	}
	if err := a.route.LinkAdd(veth); err != nil {
		return a.wrap("linking "+devA+" to "+b.name+" "+devB, err)
	}
	if err := a.SetUp(devA); err != nil {
		return err
	}
	if err := b.SetUp(devB); err != nil {
		return err
	}
	if err := a.settle(devA); err != nil {
		return err
	}
	return b.settle(devB)
}

// settle waits until an interface carries packets. The kernel makes it ready a moment after both ends of the cable are
// up, and drops earlier packets.
func (h *Host) settle(dev string) error {
	var err error
	ready := false
	inTime := poll(Patience, func() bool {
		ready, err = h.settled(dev)
		return ready || err != nil
	})
	if err == nil && !inTime {
		err = os.ErrDeadlineExceeded
	}
	return h.wrap("waiting for "+dev, err)
}

// settled reports whether the interface is in operation and its link-local address can be used.
func (h *Host) settled(dev string) (ready bool, err error) {
	err = h.onLink(dev, func(l netlink.Link) error {
		if l.Attrs().OperState != netlink.OperUp {
			return nil
		}
		if !h.speaksIPv6(dev) {
			ready = true
			return nil
		}
		addrs, err := h.addrs(l)
		ready = slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
		})
		return err
	})
	return ready, err
}

// addrs lists addresses. It retries if they change while they are read.
func (h *Host) addrs(l netlink.Link) (addrs []netlink.Addr, err error) {
	inTime := poll(Patience, func() bool {
		addrs, err = h.route.AddrList(l, netlink.FAMILY_V6)
		return !errors.Is(err, netlink.ErrDumpInterrupted)
	})
	if !inTime {
		return nil, err
	}
	return addrs, err
}

func (h *Host) speaksIPv6(dev string) bool {
	var off []byte
	err := h.Do(func() (err error) {
		off, err = os.ReadFile("/proc/sys/net/ipv6/conf/" + dev + "/disable_ipv6")
		return err
	})
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

// Bridge makes a switch of the named interfaces. It is up, and has the given name as an interface of the host.
func (h *Host) Bridge(name string, ports ...string) error {
	snooping := false // a switch without a multicast router must not lose neighbour discovery
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, MulticastSnooping: &snooping}
	if err := h.route.LinkAdd(bridge); err != nil {
		return h.wrap("making bridge "+name, err)
	}
	for _, port := range ports {
		err := h.onLink(port, func(l netlink.Link) error { return h.route.LinkSetMaster(l, bridge) })
		if err != nil {
			return h.wrap("plugging "+port+" into "+name, err)
		}
	}
	return h.SetUp(name)
}

// SetUp brings an interface up.
func (h *Host) SetUp(dev string) error {
	return h.wrap("bringing up "+dev, h.onLink(dev, h.route.LinkSetUp))
}

// SetMTU sets the largest packet size of an interface.
func (h *Host) SetMTU(dev string, bytes int) error {
	return h.wrap("setting the MTU of "+dev,
		h.onLink(dev, func(l netlink.Link) error { return h.route.LinkSetMTU(l, bytes) }))
}

// SetDown takes an interface down; it loses its IPv6 addresses.
func (h *Host) SetDown(dev string) error {
	return h.wrap("taking down "+dev, h.onLink(dev, h.route.LinkSetDown))
}

// Delete removes an interface; of a cable, both ends.
func (h *Host) Delete(dev string) error {
	return h.wrap("deleting "+dev, h.onLink(dev, h.route.LinkDel))
}

// Interface returns the index and hardware address of an interface.
func (h *Host) Interface(dev string) (index int, mac net.HardwareAddr, err error) {
	err = h.onLink(dev, func(l netlink.Link) error {
		index, mac = l.Attrs().Index, l.Attrs().HardwareAddr
		return nil
	})
	return index, mac, h.wrap("finding "+dev, err)
}

// AddAddr adds an address with its prefix length, such as "192.0.2.1/24", to an interface. It can be used at once, even
// an IPv6 address.
func (h *Host) AddAddr(dev, prefix string) error {
	return h.wrap("adding "+prefix+" to "+dev, h.onAddr(dev, prefix, h.route.AddrAdd))
}

// DelAddr removes an address.
func (h *Host) DelAddr(dev, prefix string) error {
	return h.wrap("deleting "+prefix+" from "+dev, h.onAddr(dev, prefix, h.route.AddrDel))
}

// Route sends packets for dst, a prefix or "default" (in the family of via), to the neighbour with the address via.
func (h *Host) Route(dst, via string) error {
	gateway, err := netip.ParseAddr(via)
	if err != nil {
		return h.wrap("adding a route", err)
	}
	to := netip.PrefixFrom(gateway, 0).Masked()
	if dst != "default" {
		if to, err = netip.ParsePrefix(dst); err != nil {
			return h.wrap("adding a route", err)
		}
	}
	route := &netlink.Route{Dst: ipNet(to), Gw: gateway.AsSlice()}
	return h.wrap("adding a route to "+dst+" via "+via, h.route.RouteAdd(route))
}

// Local makes all addresses of a prefix the host's own, without adding each. To bind a socket to one of IPv6, set the
// option IPV6_FREEBIND.
func (h *Host) Local(prefix string) error {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return h.wrap("adding a local route", err)
	}
	err = h.onLink("lo", func(lo netlink.Link) error {
		return h.route.RouteAdd(&netlink.Route{Dst: ipNet(p), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL,
			Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST})
	})
	return h.wrap("adding "+prefix+" as local", err)
}

// Forward makes the host a router for IPv4 and, if the kernel has it, IPv6.
func (h *Host) Forward() error {
	if err := h.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	if !HasIPv6() {
		return nil
	}
	return h.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

// Sysctl sets a kernel parameter of the host's network, such as "net.ipv4.ip_forward".
func (h *Host) Sysctl(name, value string) error {
	return h.Do(func() error { return h.wrap("setting "+name, sysctl(name, value)) })
}

// HasIPv6 reports whether this kernel supports IPv6.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// sysctl sets the parameter in the calling thread's namespace. Interface names that contain a dot do not fit this
// notation.
func sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	return os.WriteFile(path, []byte(value), 0)
}

func (h *Host) onLink(dev string, do func(netlink.Link) error) error {
	if h.isClosed() {
		return ErrClosed
	}
	link, err := h.route.LinkByName(dev)
	if err != nil {
		return err
	}
	return do(link)
}

func (h *Host) onAddr(dev, prefix string, do func(netlink.Link, *netlink.Addr) error) error {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return h.onLink(dev, func(l netlink.Link) error { return do(l, addr) })
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
