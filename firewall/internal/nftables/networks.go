package nftables

import (
	"fmt"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
)

// Grants for networks. A set has the networks of one width, and a rule looks for the network of that width around the
// peer. Intervals in one set would conflict: the kernel refuses an interval that contains another, but each grant must
// end at its own time.

// spanned is the sets for networks of one width: as Grants4 and reach4 are for addresses.
type spanned struct {
	guard.Span
	here, there *nft.Set
}

// newSpanned returns sets that set makes. All names begin with "grants": by that, earlier versions empty them in a dry
// run.
func newSpanned(spans []guard.Span, size uint32, set func(string, ...nft.SetDatatype) *nft.Set) []spanned {
	var list []spanned
	for _, s := range spans {
		family, address := "4", nft.TypeIPAddr
		if s.Six {
			family, address = "6", nft.TypeIP6Addr
		}
		name := fmt.Sprintf("grants%s_%d", family, s.Bits)
		n := spanned{Span: s, here: set(name, address, nft.TypeInetProto, nft.TypeInetService),
			there: set(name+"_at", address, address, nft.TypeInetProto, nft.TypeInetService)}
		n.here.Size, n.there.Size = size, size
		list = append(list, n)
	}
	return list
}

// spansOf returns the sets for networks of a family.
func (o *objects) spansOf(f *family) []spanned {
	six := f.proto == unix.NFPROTO_IPV6
	return slices.DeleteFunc(slices.Clone(o.spans), func(n spanned) bool { return n.Six != six })
}

// Widen replaces the rules, and adds the sets that they look into.
func (n *Backend) Widen(spec guard.Spec, confirm bool) error {
	before, wider := n.Spec, NewObjects(spec.Size, spec.Spans...)
	n.Spec = spec
	if slices.Equal(before.Spans, spec.Spans) {
		return nil
	}
	err := n.Send(wider, n.Flags(), false, nil, func(d *Draft) {
		for _, s := range d.spans {
			d.batch.set(s.here)
			d.batch.set(s.there)
		}
		d.addRules(confirm)
	})
	if err != nil {
		n.Spec = before
		return err
	}
	n.Objects = wider
	return nil
}

// setOfNetwork returns the set that an element for a network belongs to; nil: the guard has no rule for its width.
func (o *objects) setOfNetwork(s guard.Span, there bool) *nft.Set {
	i := slices.IndexFunc(o.spans, func(n spanned) bool { return n.Span == s })
	switch {
	case i < 0:
		return nil
	case there:
		return o.spans[i].there
	}
	return o.spans[i].here
}

// lacks returns an error if the guard has no rule for the network of a live lease.
func (o *objects) lacks(ls []guard.Lease) error {
	for _, l := range ls {
		if s, wide := l.Span(); wide && o.setOfNetwork(s, false) == nil {
			return fmt.Errorf("%w: it has no rules for networks like %v", guard.ErrGone, guard.Prefix(l.Source, l.Bits))
		}
	}
	return nil
}

// eachNetwork calls do with each condition under which a packet's peer is in a network that has a grant.
func (d *Draft) eachNetwork(f *family, w heading, here Part, do func(*family, Part)) {
	for _, n := range d.spansOf(f) {
		if len(d.spec.Targets) > 0 {
			do(f, f.inNetworkThere(w, n))
		}
		do(f, Rule(here, f.network(w, n).protocol().port(w.ownPort()).in(n.here), f.peerIsNotOwn(w)))
	}
}

// inNetworkThere matches packets whose peer is in a network that has a grant for a target.
func (f *family) inNetworkThere(w heading, n spanned) Part {
	return Rule(f.network(w, n).address(f, f.own(w)).protocol().port(w.ownPort()).in(n.there), f.peerIsNotOwn(w))
}

// peerIsNotOwn does not match if the peer has an address of this host, which may have got it after the grant.
func (f *family) peerIsNotOwn(w heading) Part {
	if w == outward {
		return isNoType(destination, unix.RTN_LOCAL)
	}
	return isNoType(origin, unix.RTN_LOCAL)
}

// network begins a key with the network of that width around the peer.
func (f *family) network(w heading, n spanned) *key {
	k := f.key().address(f, f.peer(w))
	mask := f.mask(n.Bits)
	k.words[0] += " & " + mask.String()
	k.exprs = append(k.exprs, and(mask.AsSlice()))
	return k
}

// mask returns the mask of networks with that length of prefix.
func (f *family) mask(bits uint8) netip.Addr {
	mask := make([]byte, f.size)
	for i := range mask {
		if left := int(bits) - 8*i; left > 0 {
			mask[i] = byte(int(0xff00) >> min(8, left))
		}
	}
	a, _ := netip.AddrFromSlice(mask)
	return a
}
