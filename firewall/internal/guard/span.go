package guard

import (
	"cmp"
	"net/netip"
)

// Span is the width of a network in its family.
type Span struct {
	Six  bool
	Bits uint8 // the length of the prefix
}

// CompareSpans orders spans: IPv4 first, then the wider.
func CompareSpans(a, b Span) int {
	if a.Six != b.Six {
		return map[bool]int{true: 1, false: -1}[a.Six]
	}
	return cmp.Compare(a.Bits, b.Bits)
}

// Span returns the width of the element's network, or false if it is for one address.
func (e Element) Span() (Span, bool) { return Span{e.Source.Is6(), e.Bits}, e.Bits > 0 }

// Widened returns the element for the network of that width around e's address, or false for another family.
func (e Element) Widened(s Span) (Element, bool) {
	if e.Source.Is6() != s.Six || e.Link != 0 {
		return e, false
	}
	p, err := e.Source.Prefix(int(s.Bits))
	e.Source, e.Bits = p.Addr(), s.Bits
	return e, err == nil
}

// Prefix returns the network of an address, or the address alone if bits is 0.
func Prefix(a netip.Addr, bits uint8) netip.Prefix {
	if bits == 0 {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.PrefixFrom(a, int(bits))
}
