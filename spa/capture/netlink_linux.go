package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// An update is the content of one rtnetlink message about a link, an address, a local route or a rule.
type update struct {
	kind      uint16 // RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR and so on
	index     int32
	link      link
	addr      netip.Addr
	broadcast netip.Addr // invalid: none
	route     netip.Prefix
	mark      fwmark
}

// An rtnetlink is a socket for links, addresses, local routes and routing rules.
type rtnetlink struct {
	fd  int
	seq uint32 // of the last request
	buf []byte
}

// errInterrupted is returned if something changed during a dump.
var errInterrupted = errors.New("the list changed while it was being read")

func openNetlink(groups uint32) (*rtnetlink, error) {
	kind := unix.SOCK_RAW | unix.SOCK_CLOEXEC
	if groups != 0 {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(unix.AF_NETLINK, kind, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := onlyLocalRoutes(fd, groups != 0); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("binding the netlink socket: %w", err)
	}
	return &rtnetlink{fd: fd, buf: make([]byte, 64<<10)}, nil
}

// onlyLocalRoutes keeps a router's other routes out of the socket: there may be a million of them, changing
// continuously. Kernels before 4.20 do not filter their dumps; there parseRoute does.
func onlyLocalRoutes(fd int, events bool) error {
	if !events {
		err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
		if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return fmt.Errorf("requesting strict answers: %w", err)
		}
		return nil
	}
	kind := func(message uint16) uint32 { // a filter loads values in network byte order, but these are in the host's
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, message)))
	}
	const tableAt, typeAt = unix.SizeofNlMsghdr + 4, unix.SizeofNlMsghdr + 7
	return attach(fd, []bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2}, // nlmsg_type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: kind(unix.RTM_NEWROUTE), SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: kind(unix.RTM_DELROUTE), SkipTrue: 4},
		bpf.LoadAbsolute{Off: tableAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.RT_TABLE_LOCAL, SkipTrue: 3},
		bpf.LoadAbsolute{Off: typeAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.RTN_LOCAL, SkipTrue: 1},
		bpf.RetConstant{Val: math.MaxUint32},
		bpf.RetConstant{},
	})
}

func (n *rtnetlink) close() { unix.Close(n.fd) }

// dump returns all links (RTM_GETLINK), addresses (RTM_GETADDR), local routes (RTM_GETROUTE) or
// rules (RTM_GETRULE).
func (n *rtnetlink) dump(kind uint16) ([]update, error) {
	if kind != unix.RTM_GETROUTE {
		return n.dumpFamily(kind, unix.AF_UNSPEC)
	}
	ipv4, err := n.dumpFamily(kind, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	ipv6, err := n.dumpFamily(kind, unix.AF_INET6)
	return append(ipv4, ipv6...), err
}

func (n *rtnetlink) dumpFamily(kind uint16, family byte) ([]update, error) {
	const tries = 5
	for range tries {
		all, err := n.dumpOnce(kind, family)
		if !errors.Is(err, errInterrupted) {
			return all, err
		}
	}
	return nil, errInterrupted
}

func (n *rtnetlink) dumpOnce(kind uint16, family byte) ([]update, error) {
	if err := n.request(kind, family); err != nil {
		return nil, err
	}
	var all []update
	var interrupted error
	for {
		messages, err := n.read()
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Header.Seq != n.seq {
				continue // of an abandoned dump
			}
			if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = errInterrupted
			}
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return all, interrupted
			case unix.NLMSG_ERROR:
				return nil, refusal(m.Data)
			}
			if u, ok := parseUpdate(m); ok {
				all = append(all, u)
			}
		}
	}
}

func (n *rtnetlink) request(kind uint16, family byte) error {
	body := make([]byte, map[uint16]int{
		unix.RTM_GETLINK: unix.SizeofIfInfomsg, unix.RTM_GETADDR: unix.SizeofIfAddrmsg,
		unix.RTM_GETROUTE: unix.SizeofRtMsg, unix.RTM_GETRULE: unix.SizeofRtMsg,
	}[kind])
	if kind == unix.RTM_GETROUTE {
		*(*unix.RtMsg)(unsafe.Pointer(unsafe.SliceData(body))) = unix.RtMsg{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}
	}
	body[0] = family
	return n.send(kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, body)
}

func (n *rtnetlink) send(kind, flags uint16, body []byte) error {
	n.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, n.seq)
	b = append(binary.NativeEndian.AppendUint32(b, 0), body...) // nlmsg_pid
	return unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// refusal is the error in an NLMSG_ERROR.
func refusal(b []byte) error {
	if len(b) < 4 {
		return errors.New("a netlink error without a number")
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(b)))
}

// receive returns the updates of one datagram of notifications.
func (n *rtnetlink) receive() ([]update, error) {
	messages, err := n.read()
	if err != nil {
		return nil, err
	}
	var updates []update
	for _, m := range messages {
		if u, ok := parseUpdate(m); ok {
			updates = append(updates, u)
		}
	}
	return updates, nil
}

func (n *rtnetlink) read() ([]syscall.NetlinkMessage, error) {
	for {
		size, _, err := unix.Recvfrom(n.fd, n.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case size > len(n.buf):
			return nil, unix.ENOBUFS // the same as a queue overflow
		}
		messages, err := syscall.ParseNetlinkMessage(n.buf[:size])
		if err != nil {
			return nil, unix.ENOBUFS
		}
		return messages, nil
	}
}

// parseUpdate reads a message about a link, an address, a local route or a rule; for any other it returns false.
func parseUpdate(m syscall.NetlinkMessage) (update, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return parseLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return parseAddr(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return parseRoute(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return parseRule(m)
	}
	return update{}, false
}

// parseRoute reads a route of the table local that leads to this host itself.
func parseRoute(m syscall.NetlinkMessage) (update, bool) {
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return update{}, false
	}
	info := (*unix.RtMsg)(unsafe.Pointer(unsafe.SliceData(m.Data)))
	if info.Table != unix.RT_TABLE_LOCAL || info.Type != unix.RTN_LOCAL || info.Flags&unix.RTM_F_CLONED != 0 {
		return update{}, false
	}
	to := netip.IPv4Unspecified()
	if info.Family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_DST {
			to, _ = netip.AddrFromSlice(a.Value)
		}
	}
	route, err := to.Prefix(int(info.Dst_len))
	return update{kind: m.Header.Type, route: route}, err == nil
}

func parseLink(m syscall.NetlinkMessage) (update, bool) {
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return update{}, false
	}
	info := (*unix.IfInfomsg)(unsafe.Pointer(unsafe.SliceData(m.Data)))
	if info.Family != unix.AF_UNSPEC {
		return update{}, false // a bridge reports with RTM_DELLINK, too, that a port left it
	}
	u := update{kind: m.Header.Type, index: info.Index, link: link{loopback: info.Flags&unix.IFF_LOOPBACK != 0,
		ethernet: info.Type == unix.ARPHRD_ETHER}}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			u.link.name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_MASTER:
			u.link.port = true
		case unix.IFLA_ADDRESS:
			u.link.mac = string(a.Value)
		case unix.IFLA_PROP_LIST, unix.IFLA_PROP_LIST | unix.NLA_F_NESTED:
			for _, p := range attributes(a.Value, 0) {
				if p.kind == unix.IFLA_ALT_IFNAME {
					u.link.others = append(u.link.others, unix.ByteSliceToString(p.value))
				}
			}
		}
	}
	return u, true
}

func parseAddr(m syscall.NetlinkMessage) (update, bool) {
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return update{}, false
	}
	info := (*unix.IfAddrmsg)(unsafe.Pointer(unsafe.SliceData(m.Data)))
	u := update{kind: m.Header.Type, index: int32(info.Index)}
	var local, address netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_LOCAL: // if both are present, the other one is the far end's
			local, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(a.Value)
		}
	}
	if u.addr = local; !local.IsValid() {
		u.addr = address
	}
	u.broadcast = broadcastOf(u.addr, int(info.Prefixlen))
	return u, u.addr.IsValid()
}

// broadcastOf returns the last address of an IPv4 network, which its hosts treat as broadcast whether or not it was
// configured (RFC 3021: not in a network of two).
func broadcastOf(a netip.Addr, bits int) netip.Addr {
	if !a.Is4() || bits > 30 {
		return netip.Addr{}
	}
	b := a.As4()
	last := binary.BigEndian.Uint32(b[:]) | (1<<(32-bits) - 1)
	binary.BigEndian.PutUint32(b[:], last)
	return netip.AddrFrom4(b)
}
