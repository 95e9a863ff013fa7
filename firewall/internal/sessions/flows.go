// Package sessions lists and ends the sessions of this host, through sock_diag and connection tracking.
package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/local"
	"sallyport/keys/service"
)

// Numbers of linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56
	diagReplySize    = 72
	diagPorts        = 4 // source, destination
	diagAddresses    = 8 // source, destination, 16 bytes each

	// ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT: data may still be sent.
	openStates = 1<<1 | 1<<4 | 1<<5 | 1<<8
)

// Numbers of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h.
const (
	ctGet      = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctNew      = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctDelete   = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	ctGetStats = unix.NFNL_SUBSYS_CTNETLINK<<8 | 4 // of each processor

	ctTupleOrig  = 1
	ctTupleReply = 2
	ctStatus     = 3
	ctProtoInfo  = 4
	ctMark       = 8
	ctID         = 12
	ctZone       = 18
	ctMarkMask   = 21
	ctSeenReply  = 1 << 1

	ctTupleIP, ctTupleProto          = 1, 2
	ctProtoNum, ctSrcPort, ctDstPort = 1, 2, 3
	ctTCP, ctTCPState                = 1, 1
	ctTCPEstablished, ctTCPCloseWait = 3, 5
)

// Sessions holds the sockets for listing and ending sessions. They are opened for every backend before privileges are
// dropped.
type Sessions struct {
	diag  *netlink.Conn // sockets of this host
	track *netlink.Conn // connection tracking
	route *netlink.Conn // addresses of this host
	// tracks is whether this kernel lists what it tracks (nf_conntrack_netlink).
	tracks bool
}

// Open opens the sockets.
func Open() (*Sessions, error) {
	diag, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("opening sock_diag: %w", err)
	}
	track, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening netlink: %w", err), diag.Close())
	}
	route, err := local.Dial()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening netlink: %w", err), diag.Close(), track.Close())
	}
	return &Sessions{diag: diag, track: track, route: route, tracks: TellsTracked(track)}, nil
}

// TellsTracked reports whether this kernel lists what it tracks (nf_conntrack_netlink). c is a netfilter socket.
func TellsTracked(c *netlink.Conn) bool {
	_, err := c.Execute(ctRequest(ctGetStats, netlink.Request|netlink.Dump, nil))
	return err == nil
}

// Close closes the sockets.
func (s *Sessions) Close() error {
	return errors.Join(s.diag.Close(), s.track.Close(), s.route.Close())
}

// Flows lists the flows of a kind: those of this host's sockets, and those that DNAT leads to another machine, which
// only connection tracking knows. It may include flows that this host opened from a guarded port, which does no harm.
func (s *Sessions) Flows(kind func(guard.Flow) bool) ([]guard.Flow, error) {
	found := make(map[guard.Flow]bool)
	keep := func(f guard.Flow) {
		if kind(f) && !f.Remote.Addr().IsLoopback() {
			found[f] = true
		}
	}
	if err := s.socketFlows(keep); err != nil {
		return nil, err
	}
	if s.tracks {
		if err := s.trackedFlows(keep); err != nil {
			return nil, err
		}
	}
	fs := make([]guard.Flow, 0, len(found))
	for f := range found {
		fs = append(fs, f)
	}
	return fs, nil
}

// socketFlows calls keep with the flow of each connected socket of this host.
func (s *Sessions) socketFlows(keep func(guard.Flow)) error {
	return s.sockets(func(l guard.Flow, _ []byte) { keep(l) })
}

// sockets calls each with the connected sockets of this host, and the kernel's description of each.
func (s *Sessions) sockets(each func(guard.Flow, []byte)) error {
	for _, proto := range []service.Proto{service.TCP, service.UDP} {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			replies, err := s.diag.Execute(diagRequest(family, proto))
			if errors.Is(err, unix.ENOENT) && proto == service.UDP {
				continue // a kernel without udp_diag; a connected UDP server is rare
			}
			if err != nil {
				return fmt.Errorf("listing %v sockets: %w", proto, err)
			}
			for _, m := range replies {
				if l, ok := diagFlow(m.Data, proto); ok {
					each(l, m.Data)
				}
			}
		}
	}
	return nil
}

func diagRequest(family byte, proto service.Proto) netlink.Message {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = family, byte(proto)
	binary.NativeEndian.PutUint32(b[4:], openStates)
	return netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   b,
	}
}

func diagFlow(b []byte, proto service.Proto) (guard.Flow, bool) {
	if len(b) < diagReplySize {
		return guard.Flow{}, false
	}
	end := func(i int) netip.AddrPort {
		a := b[diagAddresses+16*i:][:16]
		port := binary.BigEndian.Uint16(b[diagPorts+2*i:])
		if b[0] == unix.AF_INET {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a)), port)
		}
		// A socket for both families has its IPv4 peers as ::ffff:192.0.2.1.
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(a)).Unmap(), port)
	}
	return guard.Flow{Proto: proto, Local: end(0), Remote: end(1)}, true
}

// trackedFlows calls keep with the flows in the connection tracking table that were answered: as they were before
// DNAT and after it, and as seen from this host if it began them.
func (s *Sessions) trackedFlows(keep func(guard.Flow)) error {
	return s.Entries(func(e *Entry) {
		if e.answered && e.open() {
			keep(e.inbound())
			keep(e.outbound())
			keep(e.led())
		}
	})
}

// Entries calls each with every entry of the connection tracking table.
func (s *Sessions) Entries(each func(*Entry)) error {
	replies, err := s.track.Execute(ctRequest(ctGet, netlink.Request|netlink.Dump, nil))
	if err != nil {
		return fmt.Errorf("listing tracked connections: %w", err)
	}
	for _, m := range replies {
		if e, ok := decodeEntry(m.Data); ok {
			each(e)
		}
	}
	return nil
}

func ctRequest(kind netlink.HeaderType, flags netlink.HeaderFlags, attributes []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: flags},
		Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, attributes...),
	}
}

// Entry is connection tracking's entry for a flow.
type Entry struct {
	family      byte
	orig, reply tuple
	answered    bool
	state       uint8 // of TCP
	mark        uint32
	id, zone    []byte     // attributes as the kernel sent them
	raw         []byte     // orig as the kernel sent it
	session     guard.Flow // the session that deleting the entry ends
}

// open reports whether data may still be sent in the flow.
func (e *Entry) open() bool {
	return e.orig.proto != service.TCP || (e.state >= ctTCPEstablished && e.state <= ctTCPCloseWait)
}

// inbound returns the flow as one from outside to this host.
func (e *Entry) inbound() guard.Flow {
	return guard.Flow{
		Proto:  e.orig.proto,
		Remote: netip.AddrPortFrom(e.orig.src, e.orig.sport),
		Local:  netip.AddrPortFrom(e.orig.dst, e.orig.dport),
	}
}

// outbound returns the flow as one that began here, seen from this host after translation.
func (e *Entry) outbound() guard.Flow {
	return guard.Flow{
		Proto:  e.orig.proto,
		Remote: netip.AddrPortFrom(e.orig.dst, e.orig.dport),
		Local:  netip.AddrPortFrom(e.reply.dst, e.reply.dport),
	}
}

// led returns the flow as one from outside to the server that DNAT leads it to.
func (e *Entry) led() guard.Flow {
	return guard.Flow{
		Proto:  e.orig.proto,
		Remote: netip.AddrPortFrom(e.orig.src, e.orig.sport),
		Local:  netip.AddrPortFrom(e.reply.src, e.reply.sport),
	}
}

func decodeEntry(b []byte) (*Entry, bool) {
	if len(b) < 4 {
		return nil, false
	}
	d, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return nil, false
	}
	d.ByteOrder = binary.BigEndian
	e := &Entry{family: b[0]}
	for d.Next() {
		switch d.Type() {
		case ctTupleOrig:
			e.raw = d.Bytes()
			d.Nested(e.orig.decode)
		case ctTupleReply:
			d.Nested(e.reply.decode)
		case ctStatus:
			e.answered = d.Uint32()&ctSeenReply != 0
		case ctProtoInfo:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeState(d, &e.state) })
		case ctMark:
			e.mark = d.Uint32()
		case ctID:
			e.id = d.Bytes()
		case ctZone:
			e.zone = d.Bytes()
		}
	}
	return e, d.Err() == nil && e.orig.src.IsValid() && e.orig.dst.IsValid()
}

// tuple is one direction of a tracked connection.
type tuple struct {
	src, dst     netip.Addr
	proto        service.Proto
	sport, dport uint16
}

func (t *tuple) decode(d *netlink.AttributeDecoder) error {
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case ctTupleIP:
			d.Nested(t.decodeIP)
		case ctTupleProto:
			d.Nested(t.decodeProto)
		}
	}
	return d.Err()
}

// decodeIP uses that attribute types of source addresses are odd (1 for IPv4, 3 for IPv6), whatever their order in
// the message.
func (t *tuple) decodeIP(d *netlink.AttributeDecoder) error {
	for d.Next() {
		a, _ := netip.AddrFromSlice(d.Bytes())
		if d.Type()%2 == 1 {
			t.src = a
		} else {
			t.dst = a
		}
	}
	return d.Err()
}

func (t *tuple) decodeProto(d *netlink.AttributeDecoder) error {
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case ctProtoNum:
			t.proto = service.Proto(d.Uint8())
		case ctSrcPort:
			t.sport = d.Uint16()
		case ctDstPort:
			t.dport = d.Uint16()
		}
	}
	return d.Err()
}

func decodeState(d *netlink.AttributeDecoder, state *uint8) error {
	for d.Next() {
		if d.Type() == ctTCP {
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == ctTCPState {
						*state = d.Uint8()
					}
				}
				return d.Err()
			})
		}
	}
	return d.Err()
}
