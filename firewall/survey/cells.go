package survey

import (
	"bytes"
	"net/netip"
)

// cell is one byte of a register, a packet or a key, and what is known of it.
type cell struct {
	b    byte
	what knowledge
}

type knowledge uint8

const (
	unknown  knowledge = iota
	known              // it is b
	outsider           // of the address of a sender that no rule names
)

func bytesOf(b ...byte) []cell {
	cells := make([]cell, len(b))
	for i := range b {
		cells[i] = cell{b[i], known}
	}
	return cells
}

func unknowns(n int) []cell { return make([]cell, n) }

func outsiders(n int) []cell {
	cells := make([]cell, n)
	for i := range cells {
		cells[i].what = outsider
	}
	return cells
}

// concrete returns the bytes if all of them are known.
func concrete(cells []cell) ([]byte, bool) {
	b := make([]byte, len(cells))
	for i, c := range cells {
		if c.what != known {
			return nil, false
		}
		b[i] = c.b
	}
	return b, true
}

// ofSource reports whether some of the cells are the sender's address.
func ofSource(cells []cell) bool {
	for _, c := range cells {
		if c.what == outsider {
			return true
		}
	}
	return false
}

// equals compares cells with want.
func equals(cells []cell, want []byte) truth {
	result := yes
	for i, c := range cells {
		switch {
		case i >= len(want):
			return result
		case c.what != known:
			result = result.and(maybe)
		case c.b != want[i]:
			return no
		}
	}
	return result
}

// less reports whether the cells, as a number with the most significant byte first, are below limit.
func less(cells []cell, limit []byte) truth {
	b, ok := concrete(cells)
	if !ok {
		return maybe
	}
	return certain(bytes.Compare(b, limit[:min(len(limit), len(b))]) < 0)
}

// within reports whether the cells are from low to high.
func within(cells []cell, low, high []byte) truth {
	b, ok := concrete(cells)
	if !ok {
		return maybe
	}
	return certain(bytes.Compare(b, low) >= 0 && bytes.Compare(b, high) <= 0)
}

// nobodys reports whether an address that begins with these bytes is one that no packet from outside has: loopback,
// link-local, multicast or unspecified. A rule about such addresses does not distinguish sources.
func nobodys(begin []byte, v4 bool) bool {
	address := make([]byte, 16)
	if v4 {
		address = address[:4]
	}
	if len(begin) == 0 || len(begin) > len(address) {
		return false
	}
	copy(address, begin)
	a, _ := netip.AddrFromSlice(address)
	return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()
}
