package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Dial opens a socket for reading routes and addresses.
func Dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	// With strict checking the kernel filters its list (Linux 4.20): a router may have a million other routes.
	if err := c.SetOption(netlink.GetStrictCheck, true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Read lists the routes of type local in the table local, including those of the loopback network and of the
// addresses of interfaces.
func Read(c *netlink.Conn) ([]Route, error) {
	var all []Route
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[familyAt], body[tableAt], body[typeAt] = family, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
		answers, err := dump(c, unix.RTM_GETROUTE, body)
		if err != nil {
			return nil, fmt.Errorf("listing local routes: %w", err)
		}
		for _, m := range answers {
			if r, ok := parse(m.Data); ok {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// dump lists objects, and retries if they changed during the listing.
func dump(c *netlink.Conn, kind netlink.HeaderType, body []byte) ([]netlink.Message, error) {
	const tries = 5
	var err error
	for range tries {
		var answers []netlink.Message
		answers, err = c.Execute(netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Dump},
			Data: body})
		if !errors.Is(err, unix.EINTR) {
			return answers, err
		}
	}
	return nil, err
}

// Offsets of fields in struct rtmsg (linux/rtnetlink.h).
const (
	familyAt, lengthAt, tableAt, typeAt, flagsAt = 0, 1, 4, 7, 8
)

func parse(b []byte) (Route, bool) {
	if len(b) < unix.SizeofRtMsg || b[tableAt] != unix.RT_TABLE_LOCAL || b[typeAt] != unix.RTN_LOCAL ||
		binary.NativeEndian.Uint32(b[flagsAt:])&unix.RTM_F_CLONED != 0 {
		return Route{}, false
	}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofRtMsg:])
	if err != nil {
		return Route{}, false
	}
	r, to := Route{}, netip.IPv4Unspecified()
	if b[familyAt] == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for d.Next() {
		switch d.Type() {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(d.Bytes())
		case unix.RTA_OIF:
			r.Link = int(d.Uint32())
		}
	}
	r.Prefix, err = to.Prefix(int(b[lengthAt]))
	return r, err == nil && d.Err() == nil
}
