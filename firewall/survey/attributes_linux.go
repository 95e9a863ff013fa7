package survey

import (
	"bytes"
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// attributes are netlink attributes, indexed by type. Numbers are big-endian, as in nf_tables. A missing attribute
// reads as empty or zero.
type attributes []*attribute

// attribute is a value that may contain attributes. Those are parsed only once, because a rule is weighed for every
// port.
type attribute struct {
	raw   []byte
	inner attributes
}

func parseAttributes(raw []byte) attributes {
	attrs := list(raw)
	size := 1 // not nil once parsed
	for _, attr := range attrs {
		size = max(size, int(attr.Type)+1)
	}
	a := make(attributes, size)
	for _, attr := range attrs {
		a[attr.Type] = &attribute{raw: attr.Data}
	}
	return a
}

// list returns attributes in their order. A malformed one, which the kernel does not send, makes the list empty.
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

func (a attributes) at(key uint16) *attribute {
	if int(key) < len(a) {
		return a[key]
	}
	return nil
}

// raw returns the bytes of an attribute; nil if it is missing.
func (a attributes) raw(key uint16) []byte {
	if attr := a.at(key); attr != nil {
		return attr.raw
	}
	return nil
}

func (a attributes) has(key uint16) bool { return a.at(key) != nil }

func (a attributes) nested(key uint16) attributes {
	attr := a.at(key)
	if attr == nil {
		return nil
	}
	if attr.inner == nil {
		attr.inner = parseAttributes(attr.raw)
	}
	return attr.inner
}

// value returns the bytes of a nested value.
func (a attributes) value(key uint16) []byte { return a.nested(key).raw(unix.NFTA_DATA_VALUE) }

func (a attributes) u32(key uint16) uint32 {
	raw := a.raw(key)
	if len(raw) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(raw)
}

func (a attributes) u64(key uint16) uint64 {
	raw := a.raw(key)
	if len(raw) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(raw)
}

func (a attributes) str(key uint16) string { return string(bytes.TrimRight(a.raw(key), "\x00")) }
