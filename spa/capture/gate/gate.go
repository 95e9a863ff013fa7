// Package gate checks the gate tag of packets in the kernel, so that forged packets never wake the server. It is an
// eBPF program on the sockets that receive knocks and, if wanted, another on network interfaces (XDP).
//
// Both make the same decision about a packet to a knock port:
//
//	length   the UDP payload has a possible length
//	cut      the packet has a head: nonce, sealed id and tag, 40 bytes
//	tag      the tag is that of the first 32 bytes under one of the gate keys: SipHash-2-4
//	spent    it is no further copy of a packet of which the server has seen a copy
//
// A packet that fails is counted by the check, and dropped. What a classic filter lets through for user space to count
// (IP options, one IPv6 extension header, a first fragment) needs a good tag too.
//
// The program on an interface sees packets before the host knows whose they are, so it drops only what is a plain
// datagram to an address of this host and a knock port that nobody else serves. Anything else passes on untouched. Of
// what it would drop it lets [Unhindered] packets a second through: the host answers a scan of a knock port like one of
// any closed port, and it sends no more answers than that.
//
// Keys, ports, lengths, copies and addresses are in maps that the server shares as memory, so that it can change them
// without a system call once its privileges are gone. An attacker who takes over the server can change them too. That
// can make the gate useless or shut, but lets nothing through that has neither a tag nor the cookie of STUN: there is
// no switch for that.
//
// The map of copies is a table of sets of four entries in place of the kernel's LRU hash: to fill that takes bpf(2),
// whose use kills the server (package sandbox).
package gate

import (
	"fmt"
	"io"
)

// Unhindered is how many packets a second, for each processor, an XDP gate lets through that it would drop. It is what
// Linux answers at most by default (net.ipv4.icmp_msgs_per_sec).
const Unhindered = 1000

// MaxKeys is how many keys the gate has room for: those of the gateway and of its fleet, each with a previous one.
const MaxKeys = 4

// HeadLen is the length of nonce, sealed id and tag.
const HeadLen = 40

// A Key is the key of a gate tag, as its two little-endian halves.
type Key struct{ K0, K1 uint64 }

// Format prints gate.Key(secret) for every verb.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, "gate.Key(secret)") }

// Config describes the packets that pass.
type Config struct {
	// Ports are the UDP destination ports; Shared are those of them that another program of the host serves too.
	Ports, Shared []uint16
	// MinLen and MaxLen bound the UDP payload in bytes, both inclusive.
	MinLen, MaxLen int
	// FrameMin and FrameMax, unless zero, bound the payload of STUN requests that carry a packet. They are longer than
	// MaxLen, and only their magic cookie is checked.
	FrameMin, FrameMax int
	// Keys are the keys of the tags, at most MaxKeys. Without one the gate drops every packet to a knock port.
	Keys []Key
}

// Counts are the packets that were dropped since the gate was opened, by reason.
type Counts struct {
	Length    uint64 // not the length of a packet
	Cut       uint64 // without a whole head
	Tag       uint64 // with a wrong tag
	Spent     uint64 // further copies of a packet, from the address of the first copy
	Elsewhere uint64 // further copies of a packet that also came from another address
	XDP       uint64 // how many of all these were dropped on an interface
}

// An Interface is a network interface.
type Interface struct {
	Index int
	Name  string
}
