package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A host knows the machine's own addresses and interfaces, and follows their changes. It belongs to one reader.
type host struct {
	events *rtnetlink // notifications
	dumps  *rtnetlink // queries; open from the start, because no socket can be created later
	stale  bool       // notifications were lost, and the dump that would replace them failed
	moved  bool       // routes have changed since they were read

	links      map[int32]link
	places     map[place]netip.Addr // its broadcast address, if it has one
	own        map[netip.Addr]int   // at how many places
	broadcasts map[netip.Addr]int
	local      map[netip.Prefix]bool // prefixes that routes make the host's own, whether or not an interface has them
	lengths    [2][]int              // their lengths, IPv4 and IPv6, each once
}

// A link is a network interface.
type link struct {
	name     string
	others   []string // alternative names (ip-link(8))
	mac      string   // its bytes
	loopback bool
	ethernet bool
	port     bool // of a bridge, bond or other master
}

// isNamed reports whether one of its names is in the list.
func (l link) isNamed(names []string) bool {
	return slices.Contains(names, l.name) || slices.ContainsFunc(l.others,
		func(other string) bool { return slices.Contains(names, other) })
}

// A place is an address on an interface: the same address can be on several.
type place struct {
	index int32
	addr  netip.Addr
}

func openHost() (*host, error) {
	events, err := openNetlink(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err != nil {
		return nil, err
	}
	dumps, err := openNetlink(0)
	if err != nil {
		events.close()
		return nil, err
	}
	h := &host{events: events, dumps: dumps}
	if err := h.learn(); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *host) close() {
	h.events.close()
	h.dumps.close()
}

// learn replaces everything known with the current state. If it fails, the known state stays.
func (h *host) learn() error {
	var seen []update
	for _, kind := range []uint16{unix.RTM_GETLINK, unix.RTM_GETADDR} {
		updates, err := h.dumps.dump(kind)
		if err != nil {
			return fmt.Errorf("listing the host's interfaces and addresses: %w", err)
		}
		seen = append(seen, updates...)
	}
	if err := h.learnRoutes(); err != nil {
		return err
	}
	h.links, h.places = map[int32]link{}, map[place]netip.Addr{}
	h.own, h.broadcasts = map[netip.Addr]int{}, map[netip.Addr]int{}
	for _, u := range seen {
		h.apply(u)
	}
	return nil
}

// learnRoutes reads table local again. Notifications are not enough to follow it: one that replaces a route does not
// name the old one.
func (h *host) learnRoutes() error {
	routes, err := h.dumps.dump(unix.RTM_GETROUTE)
	if err != nil {
		return fmt.Errorf("listing the host's local routes: %w", err)
	}
	h.local, h.lengths, h.moved = map[netip.Prefix]bool{}, [2][]int{}, false
	for _, u := range routes {
		h.local[u.route] = true
		lengths := &h.lengths[family(u.route.Addr())]
		if !slices.Contains(*lengths, u.route.Bits()) {
			*lengths = append(*lengths, u.route.Bits())
		}
	}
	return nil
}

// family returns an index: 0 for IPv4, 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// refresh reads pending notifications without waiting. Those that are repeated, or that a dump already covered, do no
// harm.
func (h *host) refresh() {
	for {
		updates, err := h.events.receive()
		if errors.Is(err, unix.ENOBUFS) {
			h.stale = true // the queue overflowed
			continue       // the remaining notifications are older than the next dump, and must not be applied after it
		}
		if err != nil {
			break // EAGAIN: no more
		}
		for _, u := range updates {
			h.apply(u)
		}
	}
	if h.stale {
		h.stale = h.learn() != nil
	}
	if h.moved {
		_ = h.learnRoutes() // if this fails, the routes are read again next time
	}
}

func (h *host) apply(u update) {
	switch u.kind {
	case unix.RTM_NEWLINK:
		h.links[u.index] = u.link
	case unix.RTM_DELLINK:
		delete(h.links, u.index)
	case unix.RTM_NEWADDR:
		h.remove(place{u.index, u.addr})
		h.add(place{u.index, u.addr}, u.broadcast)
	case unix.RTM_DELADDR:
		h.remove(place{u.index, u.addr})
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		h.moved = true
	}
}

func (h *host) add(p place, broadcast netip.Addr) {
	h.places[p] = broadcast
	h.own[p.addr]++
	h.broadcasts[broadcast]++ // counts the zero address too, for a network without one: no packet goes there
}

func (h *host) remove(p place) {
	broadcast, ok := h.places[p]
	if !ok {
		return
	}
	delete(h.places, p)
	lessOne(h.own, p.addr)
	lessOne(h.broadcasts, broadcast)
}

func lessOne(counts map[netip.Addr]int, a netip.Addr) {
	if counts[a]--; counts[a] == 0 {
		delete(counts, a)
	}
}

// isOwn reports whether a is an address of this host that others can send to.
func (h *host) isOwn(a netip.Addr) bool {
	return !a.IsLoopback() && (h.own[a] > 0 || h.isLocal(a))
}

// isLocal reports whether the kernel delivers packets for an address here according to table local, in which cloud
// agents and load balancers put addresses that no interface has.
func (h *host) isLocal(a netip.Addr) bool {
	return slices.ContainsFunc(h.lengths[family(a)], func(bits int) bool {
		p, err := a.Prefix(bits)
		return err == nil && h.local[p]
	})
}

// isBroadcast reports whether a is the broadcast address of a network that this host is in.
func (h *host) isBroadcast(a netip.Addr) bool { return h.broadcasts[a] > 0 }
