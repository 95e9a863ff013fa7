package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/ledger"
)

// A link-local address means a different machine on each link, and no type of set has an address, a port and an
// interface. So its grants are in two sets: setNear has the ports, setLinks the interface. These cannot distinguish
// grants of one address on two links, so while those on one link last, grants on another are refused.

// neighbor is a link-local source with its grants.
type neighbor struct {
	link  uint32
	iface string // its name
	ends  map[guard.Element]time.Time
}

func (n *neighbor) clone() *neighbor {
	if n == nil {
		return nil
	}
	return &neighbor{n.link, n.iface, maps.Clone(n.ends)}
}

// left returns how long any of its grants lasts.
func (n *neighbor) left(now time.Time) time.Duration {
	var last time.Time
	for _, end := range n.ends {
		last = ledger.Later(last, end)
	}
	return last.Sub(now)
}

func (n *neighbor) member(source netip.Addr, now time.Time) ipset.Member {
	return ipset.Member{IP: source, Iface: n.iface, Seconds: ipset.Seconds(n.left(now))}
}

// approach records a lease of a neighbor.
func (b *Backend) approach(l guard.Lease, now time.Time) error {
	n := b.near[l.Source]
	if l.Remaining <= 0 {
		if n != nil {
			delete(n.ends, l.Element)
		}
		return nil
	}
	if n != nil && n.link != l.Link {
		if n.left(now) > 0 {
			return fmt.Errorf("%v has a grant on link %s; with iptables an address can have grants on only one link at a time",
				l.Source, n.iface)
		}
		n = nil
	}
	if n == nil {
		name, err := linkName(b.names, l.Link)
		if err != nil {
			return err
		}
		n = &neighbor{link: l.Link, iface: name, ends: make(map[guard.Element]time.Time)}
	}
	n.ends[l.Element] = now.Add(l.Remaining)
	b.near[l.Source] = n
	return nil
}

// settle records the leases of a new guard and returns those that its sets can hold: it drops leases for a link that
// is gone, and for a second link of an address.
func (b *Backend) settle(ls []guard.Lease) []guard.Lease {
	now := b.Spec.Now()
	b.near = make(map[netip.Addr]*neighbor)
	kept := make([]guard.Lease, 0, len(ls))
	for _, l := range ls {
		if l.Link != 0 {
			if err := b.approach(l, now); err != nil {
				b.log.Warn("could not open a port for a link-local address", "error", err)
				continue
			}
		}
		kept = append(kept, l)
	}
	return kept
}

// linkMembers returns the elements of setLinks.
func (b *Backend) linkMembers() []ipset.Member {
	now := b.Spec.Now()
	var ms []ipset.Member
	for source, n := range b.near {
		if n.left(now) > 0 {
			ms = append(ms, n.member(source, now))
		}
	}
	return ms
}

// meet updates setLinks for leases. The caller calls undo if the leases cannot be put into the other sets.
func (b *Backend) meet(ls []guard.Lease) (undo func() error, err error) {
	was := make(map[netip.Addr]*neighbor)
	undo = func() error {
		var errs []error
		for source, n := range was {
			is := b.near[source]
			b.near[source] = n
			errs = append(errs, b.link(source, is))
		}
		return errors.Join(errs...)
	}
	now := b.Spec.Now()
	for _, l := range ls {
		if l.Link == 0 {
			continue
		}
		if _, noted := was[l.Source]; !noted {
			was[l.Source] = b.near[l.Source].clone()
		}
		if err := b.approach(l, now); err != nil {
			return nil, errors.Join(err, undo())
		}
	}
	for source, n := range was {
		if err := b.link(source, n); err != nil {
			return nil, errors.Join(err, undo())
		}
	}
	return undo, nil
}

// link updates the entry of a source in setLinks from was to near's.
func (b *Backend) link(source netip.Addr, was *neighbor) error {
	now, is := b.Spec.Now(), b.near[source]
	if is == nil {
		delete(b.near, source)
	}
	open := is != nil && is.left(now) > 0
	name := SetName(setLinks, true)
	if was != nil && (!open || was.iface != is.iface) {
		if err := b.Sets.Change(ipset.CmdDel, name, was.member(source, now)); err != nil {
			return err
		}
	}
	if !open {
		return nil
	}
	return b.Sets.Change(ipset.CmdAdd, name, is.member(source, now))
}

// linkName returns the name of the interface with an index.
func linkName(c *netlink.Conn, index uint32) (string, error) {
	data := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(data[4:], index)
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   data,
	})
	if err != nil {
		return "", fmt.Errorf("looking up interface number %d: %w", index, err)
	}
	for _, m := range answers {
		if len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return "", fmt.Errorf("looking up interface number %d: %w", index, err)
		}
		for d.Next() {
			if d.Type() == unix.IFLA_IFNAME {
				return d.String(), nil
			}
		}
	}
	return "", fmt.Errorf("interface number %d has no name", index)
}
