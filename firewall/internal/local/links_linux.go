package local

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Links returns the interfaces by index.
func Links(c *netlink.Conn) (map[int]Link, error) {
	answers, err := dump(c, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	links := make(map[int]Link)
	for _, m := range answers {
		const indexAt = 4 // in struct ifinfomsg
		if len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		var l Link
		if each(m.Data[unix.SizeofIfInfomsg:], l.read) == nil {
			links[int(binary.NativeEndian.Uint32(m.Data[indexAt:]))] = l
		}
	}
	return links, nil
}

// each calls do for each attribute.
func each(b []byte, do func(*netlink.AttributeDecoder)) error {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	for d.Next() {
		do(d)
	}
	return d.Err()
}

func nested(d *netlink.AttributeDecoder, do func(*netlink.AttributeDecoder)) {
	d.Nested(func(d *netlink.AttributeDecoder) error {
		for d.Next() {
			do(d)
		}
		return nil
	})
}

func (l *Link) read(d *netlink.AttributeDecoder) {
	switch d.Type() {
	case unix.IFLA_MASTER:
		l.Master = int(d.Uint32())
	case unix.IFLA_LINK:
		l.Lower = int(d.Uint32())
	case unix.IFLA_PROP_LIST:
		nested(d, func(d *netlink.AttributeDecoder) {
			if d.Type() == unix.IFLA_ALT_IFNAME {
				l.AltNames = append(l.AltNames, d.String())
			}
		})
	case unix.IFLA_LINKINFO:
		nested(d, l.readInfo)
	}
}

// readInfo reads the kind and the data. The kind comes first and decides how to read the data.
func (l *Link) readInfo(d *netlink.AttributeDecoder) {
	switch {
	case d.Type() == unix.IFLA_INFO_KIND:
		l.Kind = d.String()
	case d.Type() == unix.IFLA_INFO_DATA && l.Kind == "bridge":
		nested(d, func(d *netlink.AttributeDecoder) {
			switch d.Type() {
			case unix.IFLA_BR_NF_CALL_IPTABLES:
				l.Calls4 = d.Uint8() != 0
			case unix.IFLA_BR_NF_CALL_IP6TABLES:
				l.Calls6 = d.Uint8() != 0
			}
		})
	}
}

// Rules lists the routing rules that match a packet mark.
func Rules(c *netlink.Conn) ([]Rule, error) {
	var all []Rule
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		const tableAt, flagsAt, header = 4, 8, 12 // in struct fib_rule_hdr
		body := make([]byte, header)
		body[0] = family
		answers, err := dump(c, unix.RTM_GETRULE, body)
		if err != nil {
			return nil, fmt.Errorf("listing routing rules: %w", err)
		}
		for _, m := range answers {
			if len(m.Data) < header || m.Data[0] != family {
				continue
			}
			inverted := binary.NativeEndian.Uint32(m.Data[flagsAt:])&unix.FIB_RULE_INVERT != 0
			r := Rule{V4: family == unix.AF_INET, Table: uint32(m.Data[tableAt]), More: inverted}
			if each(m.Data[header:], r.read) == nil && r.Mask != 0 {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

func (r *Rule) read(d *netlink.AttributeDecoder) {
	switch d.Type() {
	case unix.FRA_FWMARK:
		r.Value = d.Uint32()
	case unix.FRA_FWMASK:
		r.Mask = d.Uint32()
	case unix.FRA_TABLE:
		r.Table = d.Uint32()
	case unix.FRA_PRIORITY:
		r.Priority = d.Uint32()
	case unix.FRA_SRC, unix.FRA_DST, unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_UID_RANGE, unix.FRA_IP_PROTO,
		unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE:
		r.More = true
	}
}

// Toward returns the index of the interface by which routing reaches an address.
func Toward(c *netlink.Conn, to netip.Addr) (int, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[familyAt] = unix.AF_INET
	if to.Is6() {
		body[familyAt] = unix.AF_INET6
	}
	body[lengthAt] = byte(to.BitLen())
	destination, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.RTA_DST, Data: to.AsSlice()}})
	if err != nil {
		return 0, err
	}
	answers, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data: append(body, destination...)})
	if err != nil {
		return 0, fmt.Errorf("looking up the route to %v: %w", to, err)
	}
	by := 0
	for _, m := range answers {
		if len(m.Data) < unix.SizeofRtMsg {
			continue
		}
		err = each(m.Data[unix.SizeofRtMsg:], func(d *netlink.AttributeDecoder) {
			if d.Type() == unix.RTA_OIF {
				by = int(d.Uint32())
			}
		})
	}
	return by, err
}
