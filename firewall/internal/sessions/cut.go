package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/local"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// Numbers of linux/sock_diag.h, linux/inet_diag.h, linux/rtnetlink.h and linux/if_addr.h.
const (
	sockDestroy = 21
	diagID      = 4 // in a reply: ports, addresses, interface, cookie
	diagAsked   = 8 // in a request
	diagIDSize  = 48

	addressHeader = 8
	ifaAddress    = 1
	ifaLocal      = 2
)

// Cut ends the sessions of a kind and returns how many it ended. With a mark it ends only sessions whose conntrack
// entry has that bit; without one, all that go to this host or that DNAT leads to another machine.
//
// It destroys local sockets first, which notifies the server and sends the client a reset, and then deletes the
// conntrack entries. Without its entry, later packets are new to the guard, and DNAT no longer leads them to the
// other machine. In the opposite order the reset would belong to no flow.
func (s *Sessions) Cut(kind func(guard.Flow) bool, target func(netip.Addr) bool, mark uint32) (int, error) {
	doomed, tracked, err := s.toDelete(kind, target, mark)
	if err != nil {
		return 0, err
	}
	n, err := s.destroySockets(func(l guard.Flow) (dies, counted bool) {
		if e := doomed[l]; e != nil {
			return kind(e.session), e.open() // its entry is counted below
		}
		return !tracked[l] && kind(l), false
	})
	errs := []error{err}
	for _, e := range doomed {
		if !kind(e.session) {
			continue
		}
		// If a local UDP server kept sending, it would create a new entry that the client could reply on. So clear
		// the mark instead of deleting the entry: the guard drops what leaves in such a flow.
		end := s.Untrack
		if mark != 0 && e.orig.proto == service.UDP && e.orig.dst == e.reply.src && e.orig.src == e.reply.dst {
			end = func(e *Entry) error { return s.unmark(e, mark) }
		}
		if err := end(e); err != nil {
			errs = append(errs, err)
			continue
		}
		if e.open() {
			n++
		}
	}
	return n, errors.Join(errs...)
}

// toDelete returns the entries to delete, by the flow of the socket at this end, and all tracked flows, seen from
// either side. If a server sent before connection tracking knew the session, its entry runs from here to the client.
func (s *Sessions) toDelete(kind func(guard.Flow) bool, target func(netip.Addr) bool,
	mark uint32) (map[guard.Flow]*Entry, map[guard.Flow]bool, error) {
	entries, tracked := make(map[guard.Flow]*Entry), make(map[guard.Flow]bool)
	if !s.tracks {
		return entries, tracked, nil
	}
	here, err := s.addresses()
	if err != nil {
		return nil, nil, err
	}
	err = s.Entries(func(e *Entry) {
		in, out := e.inbound(), e.outbound()
		server := guard.Flow{Proto: in.Proto, Remote: netip.AddrPortFrom(e.reply.dst, e.reply.dport),
			Local: netip.AddrPortFrom(e.reply.src, e.reply.sport)}
		began := guard.Flow{Proto: out.Proto, Remote: out.Remote, Local: netip.AddrPortFrom(e.orig.src, e.orig.sport)}
		tracked[server], tracked[began] = true, true
		admitted := e.mark&mark != 0
		switch {
		case (admitted || mark == 0 && (here(e.orig.dst) || e.orig.dst != e.reply.src)) && kind(in):
			e.session, entries[server] = in, e
		case admitted && (here(e.reply.src) || target(e.reply.src)) && kind(e.led()): // another port leads here
			e.session, entries[server] = e.led(), e
		case (admitted || mark == 0 && here(e.reply.dst)) && kind(out):
			e.session, entries[began] = out, e
		}
	})
	return entries, tracked, err
}

// destroySockets destroys the sockets that dies selects, and returns how many of them are not counted elsewhere. On a
// kernel without CONFIG_INET_DIAG_DESTROY, servers that send wait for an answer until they time out; the guard drops
// their packets.
func (s *Sessions) destroySockets(dies func(guard.Flow) (dies, counted bool)) (int, error) {
	type socket struct {
		guard.Flow
		said    []byte
		counted bool
	}
	var found []socket
	err := s.sockets(func(l guard.Flow, said []byte) {
		if yes, counted := dies(l); yes {
			found = append(found, socket{l, said, counted})
		}
	})
	n := 0
	errs := []error{err}
	for _, k := range found {
		err := s.destroy(k.Flow, k.said)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		case err != nil:
			errs = append(errs, fmt.Errorf("destroying a socket: %w", err))
		case !k.counted:
			n++
		}
	}
	return n, errors.Join(errs...)
}

// destroy destroys a socket that the kernel listed.
func (s *Sessions) destroy(l guard.Flow, said []byte) error {
	m := diagRequest(said[0], l.Proto)
	m.Header = netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge}
	copy(m.Data[diagAsked:], said[diagID:][:diagIDSize])
	_, err := s.diag.Execute(m)
	return err
}

// Untrack deletes an entry. An entry that is already gone is no error.
func (s *Sessions) Untrack(e *Entry) error {
	var id []byte
	if e.id != nil { // another flow may use the same addresses and ports by now
		id = nl.Attribute(nil, ctID, e.id)
	}
	return s.change(ctDelete, e, id)
}

// unmark clears the bit of an entry's mark.
func (s *Sessions) unmark(e *Entry, mark uint32) error {
	b := nl.Attribute(nil, ctMark, make([]byte, 4))
	return s.change(ctNew, e, nl.Attribute(b, ctMarkMask, binary.BigEndian.AppendUint32(nil, mark)))
}

func (s *Sessions) change(kind netlink.HeaderType, e *Entry, attributes []byte) error {
	b := nl.Attribute(nil, ctTupleOrig|unix.NLA_F_NESTED, e.raw)
	if e.zone != nil {
		b = nl.Attribute(b, ctZone, e.zone)
	}
	m := ctRequest(kind, netlink.Request|netlink.Acknowledge, append(b, attributes...))
	m.Data[0] = e.family
	if _, err := s.track.Execute(m); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting a tracked connection: %w", err)
	}
	return nil
}

// addresses returns a function that reports whether an address is this host's: an interface has it, or a local route
// leads to it.
func (s *Sessions) addresses() (func(netip.Addr) bool, error) {
	own, err := s.Own()
	if err != nil {
		return nil, err
	}
	return func(a netip.Addr) bool {
		return slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(a) })
	}, nil
}

// Own returns the addresses of this host: those of its interfaces, and those that a local route leads to it.
func (s *Sessions) Own() ([]netip.Prefix, error) {
	replies, err := s.route.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, addressHeader),
	})
	if err != nil {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	var list []netip.Prefix
	for _, m := range replies {
		if len(m.Data) < addressHeader {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[addressHeader:])
		if err != nil {
			return nil, fmt.Errorf("listing the host's addresses: %w", err)
		}
		var own netip.Addr
		for d.Next() {
			switch {
			case d.Type() == ifaLocal, d.Type() == ifaAddress && !own.IsValid(): // a tunnel's ifaAddress is the peer's
				own, _ = netip.AddrFromSlice(d.Bytes())
			}
		}
		if own.IsValid() {
			list = append(list, netip.PrefixFrom(own, own.BitLen()))
		}
	}
	routes, err := local.Read(s.route)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		list = append(list, r.Prefix)
	}
	return list, nil
}
