package survey

import (
	"bytes"
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// attributes are netlink attributes by their type. Numbers are big-endian, as nf_tables has
// them. One that is not there reads as nothing.
type attributes map[uint16][]byte

func parseAttributes(raw []byte) attributes {
	a := make(attributes)
	for _, attr := range list(raw) {
		a[attr.Type] = attr.Data
	}
	return a
}

// list returns attributes in their order. What is malformed ends it: the kernel does not send that.
func list(raw []byte) []netlink.Attribute {
	attrs, err := netlink.UnmarshalAttributes(raw)
	if err != nil {
		return nil
	}
	for i := range attrs {
		attrs[i].Type &^= unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
	}
	return attrs
}

func (a attributes) nested(key uint16) attributes { return parseAttributes(a[key]) }

// value returns the bytes of a nested value.
func (a attributes) value(key uint16) []byte { return a.nested(key)[unix.NFTA_DATA_VALUE] }

func (a attributes) u32(key uint16) uint32 {
	if len(a[key]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[key])
}

func (a attributes) u64(key uint16) uint64 {
	if len(a[key]) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a[key])
}

func (a attributes) str(key uint16) string { return string(bytes.TrimRight(a[key], "\x00")) }
