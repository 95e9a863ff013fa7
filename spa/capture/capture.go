// Package capture finds candidate packets: UDP datagrams to this host, to a knock port and of a possible length, as
// they arrive and before a firewall drops them.
//
// A [Sniffer] binds no port and answers nothing. It returns only candidates: nothing here authenticates a
// sender. It checks each packet in this order:
//
//	kernel filter   UDP, to a knock port, of a possible length; all else is never queued
//	interface       one of those wanted
//	link layer      addressed to this host, not overheard
//	network layer   well formed, whole, without IP options or extension headers
//	destination     an address of this host, not one that it merely routes to
//	source          not an address that a stranger's packet cannot come from
//	framing         if it is longer than a candidate: a STUN request that carries one, if those are wanted
//
// Packets that fail are counted by kind in [Stats] and dropped. UDP checksums are not checked: a virtual link hands
// over packets whose checksum the sender's host never finished, and a packet's own authentication covers far more.
//
// A [Responder] sends datagrams from the address and port that were knocked on, without binding that port. A [Bound]
// does both with bound sockets, where packet sockets are not allowed.
package capture

import (
	"errors"
	"fmt"
	"net/netip"

	"sallyport/spa/capture/gate"
	"sallyport/spa/stun"
)

const (
	maxPorts   = 64   // a filter's jumps reach no further than 255 instructions
	maxPayload = 1472 // what one Ethernet frame carries
)

// Config describes which packets are candidates.
type Config struct {
	// Ports are the UDP destination ports to listen to, 1 to 64.
	Ports []uint16
	// MinLen and MaxLen bound the UDP payload in bytes, both inclusive; at most 1472.
	MinLen, MaxLen int
	// Browser wants candidates in the STUN requests of browsers too (package stun). MaxLen is then less than
	// stun.MinLen.
	Browser bool
	// Interfaces are the network interfaces that packets may come in by; empty means all except the loopback. They need
	// not exist yet, and may go and come back; alternative names count as well. A packet that came in by a port of a
	// bridge or bond belongs to the bridge or bond. One with a VLAN tag belongs to the VLAN's interface or, if there is
	// none, to the one that carried it.
	Interfaces []string
	// Gate says where the gate tag is checked first.
	Gate Gate
}

// Gate describes how packets are checked in the kernel (package gate).
type Gate struct {
	// Mode is "socket", "xdp", or "auto" for what this kernel and the process's rights allow without touching anything
	// but the capture's own sockets. "none" or empty: the tag is not checked here.
	Mode string
	// Keys are the keys of the tags.
	Keys []gate.Key
	// Shared are the ports that another program of the host serves too.
	Shared []uint16
}

// on reports whether a gate is wanted.
func (g Gate) on() bool { return g.Mode != "" && g.Mode != "none" }

// Gating describes the gate of a capture.
type Gating struct {
	Mode string   // where the tag is checked first: "xdp", "socket" or "none"
	XDP  []string // interfaces with an XDP gate, and its kind: "eth0 (native)"
	Why  []string // why the gate is not where it was wanted
}

func (c Config) check() error {
	if len(c.Ports) == 0 {
		return errors.New("no port to listen on")
	}
	if len(c.Ports) > maxPorts {
		return fmt.Errorf("%d ports to listen on, at most %d are possible", len(c.Ports), maxPorts)
	}
	if c.MinLen < 0 || c.MinLen > c.MaxLen || c.MaxLen > maxPayload {
		return fmt.Errorf("lengths from %d to %d are not within 0 to %d", c.MinLen, c.MaxLen, maxPayload)
	}
	if c.Browser && c.MaxLen >= stun.MinLen {
		return fmt.Errorf("a candidate of %d bytes could be a STUN request", c.MaxLen)
	}
	return nil
}

// longest returns the length of the longest datagram that can be or carry a candidate.
func (c Config) longest() int {
	if c.Browser {
		return stun.MaxLen
	}
	return c.MaxLen
}

// fits reports whether a datagram of n bytes can be or carry a candidate.
func (c Config) fits(n int) bool {
	return c.MinLen <= n && n <= c.MaxLen || c.Browser && stun.MinLen <= n && n <= stun.MaxLen
}

// Packet is one datagram to this host.
type Packet struct {
	// Data is the UDP payload, or what the STUN request in it carries. It is valid until the next Read.
	Data []byte
	// Frame is that STUN request, valid until the next Read; nil if there is none.
	Frame []byte
	// From and To are the datagram's addresses: plain IPv4 or IPv6, never IPv4 mapped into IPv6, and without a zone even
	// if they are link-local, so that the same sender always compares equal (Interface distinguishes link-local
	// senders).
	From, To netip.AddrPort
	// Interface is the index of the network interface that it came in by.
	Interface int
}

// Stats counts the packets that a Sniffer has seen since it was opened.
type Stats struct {
	Received uint64 // came through the kernel filter
	Passed   uint64 // returned by Read
	Framed   uint64 // of these, carried by a STUN request

	WrongInterface uint64 // by an interface that is not listened to
	NotForUs       uint64 // to another host: overheard, or merely routed by this one
	OwnSource      uint64 // from an address of this host
	BadSource      uint64 // from a loopback, multicast, broadcast, unspecified or mapped address
	Fragment       uint64 // the first fragment of a longer datagram (later ones name no port)
	Options        uint64 // with IPv4 options
	Extension      uint64 // with an IPv6 extension header
	Malformed      uint64 // lengths that contradict each other
	Unframed       uint64 // as long as a STUN request with a packet, and not one
	Cut            uint64 // candidates of a File that were not captured whole

	KernelDrops uint64 // thrown away by the kernel because Read was not called fast enough

	Gate gate.Counts // dropped by the gate, and not among Received
}
