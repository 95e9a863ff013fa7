package survey

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// leads reports whether the rule leads packets elsewhere.
func (r *nftRule) leads() bool {
	return slices.ContainsFunc(r.steps, func(e expression) bool {
		return e.name == "redir" || e.name == "tproxy" ||
			e.name == "nat" && e.attrs.u32(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT
	})
}

// says follows the destination port into registers, and returns the values that these are compared with.
func (r *nftRule) says(said []uint16, sets setReader) []uint16 {
	at := -1 // where the port is in the registers; -1: nowhere
	for _, e := range r.steps {
		switch e.name {
		case "payload":
			at = loadsPort(e.attrs, at)
		case "cmp":
			said = portFrom(said, e.attrs.value(unix.NFTA_CMP_DATA), at-offset(e.attrs.u32(unix.NFTA_CMP_SREG)))
		case "range":
			from := at - offset(e.attrs.u32(unix.NFTA_RANGE_SREG))
			said = portFrom(said, e.attrs.value(unix.NFTA_RANGE_FROM_DATA), from)
			said = portFrom(said, e.attrs.value(unix.NFTA_RANGE_TO_DATA), from)
		case "lookup":
			name := Set{Family: r.table.family, Table: r.table.name, Name: e.attrs.str(unix.NFTA_LOOKUP_SET)}
			said = portsOfSet(said, sets, name, at-offset(e.attrs.u32(unix.NFTA_LOOKUP_SREG)))
		}
	}
	return said
}

// loadsPort returns where the destination port is after a header was loaded: nft loads adjacent fields, such as both
// ports, at once.
func loadsPort(a attributes, at int) int {
	const portAt, portSize = 2, 2 // in the headers of TCP and UDP
	from, size := int(a.u32(unix.NFTA_PAYLOAD_OFFSET)), int(a.u32(unix.NFTA_PAYLOAD_LEN))
	to := offset(a.u32(unix.NFTA_PAYLOAD_DREG))
	transport := a.u32(unix.NFTA_PAYLOAD_BASE) == unix.NFT_PAYLOAD_TRANSPORT_HEADER
	switch {
	case transport && from <= portAt && from+size >= portAt+portSize:
		return to + portAt - from
	case at >= to && at < to+size:
		return -1
	}
	return at
}

// offset returns where a register begins: see register.
func offset(register uint32) int {
	if register <= unix.NFT_REG_4 {
		return (int(register) - unix.NFT_REG_1) * 16
	}
	return (int(register) - unix.NFT_REG32_00) * 4
}

// portFrom appends the port at an offset of the data, if it is within the data.
func portFrom(said []uint16, data []byte, from int) []uint16 {
	if from < 0 || from+2 > len(data) {
		return said
	}
	return append(said, binary.BigEndian.Uint16(data[from:]))
}

// portsOfSet appends the ports in the keys of a set. It reads the set only if its keys contain ports: most sets are
// about sources, and may be large.
func portsOfSet(said []uint16, sets setReader, name Set, from int) []uint16 {
	if from < 0 || from+2 > sets.shape(name).size() {
		return said
	}
	es, err := sets.set(name)
	if err != nil {
		return said
	}
	for _, e := range es.list {
		said = portFrom(portFrom(said, e.key, from), e.last, from)
	}
	return said
}
