package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An update is what one rtnetlink message says of a link or an address.
type update struct {
	kind      uint16 // RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR
	index     int32
	link      link
	addr      netip.Addr
	broadcast netip.Addr // invalid: none
}

// An rtnetlink is a socket that tells of links and addresses.
type rtnetlink struct {
	fd  int
	seq uint32 // of the last request
	buf []byte
}

// errInterrupted is returned when something changed while it was told.
var errInterrupted = errors.New("the list changed while it was read")

func openNetlink(groups uint32) (*rtnetlink, error) {
	kind := unix.SOCK_RAW | unix.SOCK_CLOEXEC
	if groups != 0 {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(unix.AF_NETLINK, kind, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("binding the netlink socket: %w", err)
	}
	return &rtnetlink{fd: fd, buf: make([]byte, 64<<10)}, nil
}

func (n *rtnetlink) close() { unix.Close(n.fd) }

// dump returns all links (RTM_GETLINK) or addresses (RTM_GETADDR).
func (n *rtnetlink) dump(kind uint16) ([]update, error) {
	const tries = 5
	for range tries {
		all, err := n.dumpOnce(kind)
		if !errors.Is(err, errInterrupted) {
			return all, err
		}
	}
	return nil, errInterrupted
}

func (n *rtnetlink) dumpOnce(kind uint16) ([]update, error) {
	if err := n.request(kind); err != nil {
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
				continue // of a dump that was given up
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

func (n *rtnetlink) request(kind uint16) error {
	var b [unix.SizeofNlMsghdr + unix.SizeofIfInfomsg]byte // an ifaddrmsg of zeros reads the same
	h := (*unix.NlMsghdr)(unsafe.Pointer(&b))
	n.seq++
	*h = unix.NlMsghdr{Len: uint32(len(b)), Type: kind, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP, Seq: n.seq}
	return unix.Sendto(n.fd, b[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// refusal is the error in an NLMSG_ERROR.
func refusal(b []byte) error {
	if len(b) < 4 {
		return errors.New("a netlink error without a number")
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(b)))
}

// receive returns what one datagram of notifications says.
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
			return nil, unix.ENOBUFS // as lost as if there had been no room for it
		}
		messages, err := syscall.ParseNetlinkMessage(n.buf[:size])
		if err != nil {
			return nil, unix.ENOBUFS
		}
		return messages, nil
	}
}

// parseUpdate reads a message about a link or an address; any other is not ok.
func parseUpdate(m syscall.NetlinkMessage) (update, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return parseLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return parseAddr(m)
	}
	return update{}, false
}

func parseLink(m syscall.NetlinkMessage) (update, bool) {
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return update{}, false
	}
	info := (*unix.IfInfomsg)(unsafe.Pointer(unsafe.SliceData(m.Data)))
	if info.Family != unix.AF_UNSPEC {
		return update{}, false // a bridge tells that a port left it as RTM_DELLINK, too
	}
	u := update{kind: m.Header.Type, index: info.Index, link: link{loopback: info.Flags&unix.IFF_LOOPBACK != 0}}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			u.link.name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_ADDRESS:
			u.link.mac = string(a.Value)
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
		case unix.IFA_LOCAL: // where both stand, the other is the far end's
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

// broadcastOf returns the last address of an IPv4 network, which its hosts take for a
// broadcast whether one was set or not (RFC 3021: not in a network of two).
func broadcastOf(a netip.Addr, bits int) netip.Addr {
	if !a.Is4() || bits > 30 {
		return netip.Addr{}
	}
	b := a.As4()
	last := binary.BigEndian.Uint32(b[:]) | (1<<(32-bits) - 1)
	binary.BigEndian.PutUint32(b[:], last)
	return netip.AddrFrom4(b)
}
