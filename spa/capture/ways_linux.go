package capture

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ways knows which packet marks select which uplink. On a host with two uplinks, connection tracking often keeps the
// mark of the uplink by which a flow came in, and a routing rule has a table for that mark. A receipt is not tracked,
// so nothing restores the mark for it.
type ways struct {
	mu     sync.Mutex
	events *rtnetlink // added and deleted rules
	asks   *rtnetlink
	stale  bool // the rules must be read again
	marks  []fwmark
}

// An fwmark is the mark that a routing rule matches (ip-rule(8)).
type fwmark struct {
	family      byte
	value, mask uint32
}

// maxMarks bounds how many marks are tried for a receipt.
const maxMarks = 64

func openWays() (*ways, error) {
	events, err := openNetlink(unix.RTMGRP_IPV4_RULE | 1<<(unix.RTNLGRP_IPV6_RULE-1))
	if err != nil {
		return nil, err
	}
	asks, err := openNetlink(0)
	if err != nil {
		events.close()
		return nil, err
	}
	return &ways{events: events, asks: asks, stale: true}, nil
}

func (w *ways) close() {
	w.events.close()
	w.asks.close()
}

// back returns the mark for an answer to p. That is own, unless the answer would then leave by another interface than p
// came in by, and a mark of the routing rules selects the right one. With keep, that mark must include the bits of own.
// If the host answers by another uplink on purpose, and has no such rule, it is own.
func (w *ways) back(p Packet, own uint32, keep bool) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refresh()
	family := byte(unix.AF_INET)
	if p.To.Addr().Is6() {
		family = unix.AF_INET6
	}
	led := func(mark uint32) bool { return w.leads(p, family, mark) }
	marked := func(m fwmark) bool { return m.family == family }
	if !slices.ContainsFunc(w.marks, marked) || p.From.Addr().IsLinkLocalUnicast() || led(own) {
		return own
	}
	for _, m := range w.marks {
		mark := m.value | own&^m.mask
		if !(keep && mark&own != own) && led(mark) {
			return mark
		}
	}
	return own
}

// refresh reads the rules again if they have changed.
func (w *ways) refresh() {
	for {
		updates, err := w.events.receive()
		if errors.Is(err, unix.ENOBUFS) {
			w.stale = true
			continue
		}
		if err != nil {
			break // EAGAIN: no more
		}
		w.stale = w.stale || len(updates) > 0
	}
	if !w.stale {
		return
	}
	rules, err := w.asks.dump(unix.RTM_GETRULE)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a kernel without rules
		return
	}
	w.stale, w.marks = false, nil
	for _, u := range rules {
		if u.mark.mask != 0 && len(w.marks) < maxMarks && !slices.Contains(w.marks, u.mark) {
			w.marks = append(w.marks, u.mark)
		}
	}
}

// leads reports whether an answer to p with that mark leaves by the interface that p came in by.
func (w *ways) leads(p Packet, family byte, mark uint32) bool {
	to, from := p.From.Addr().AsSlice(), p.To.Addr().AsSlice()
	route := make([]byte, unix.SizeofRtMsg)
	route[0], route[1], route[2] = family, byte(8*len(to)), byte(8*len(from)) // rtm_family, rtm_dst_len, rtm_src_len
	route = appendAttribute(route, unix.RTA_DST, to)
	route = appendAttribute(route, unix.RTA_SRC, from)
	route = appendAttribute(route, unix.RTA_MARK, binary.NativeEndian.AppendUint32(nil, mark))
	by, err := w.asks.out(route)
	return err == nil && by == p.Interface
}

// out queries the interface of a route.
func (n *rtnetlink) out(route []byte) (int, error) {
	if err := n.send(unix.RTM_GETROUTE, unix.NLM_F_REQUEST, route); err != nil {
		return 0, err
	}
	for {
		messages, err := n.read()
		if err != nil {
			return 0, err
		}
		for _, m := range messages {
			if m.Header.Seq != n.seq {
				continue
			}
			if m.Header.Type == unix.NLMSG_ERROR {
				return 0, refusal(m.Data)
			}
			by := 0
			for _, a := range attributes(m.Data, unix.SizeofRtMsg) {
				if a.kind == unix.RTA_OIF && len(a.value) == 4 {
					by = int(binary.NativeEndian.Uint32(a.value))
				}
			}
			return by, nil
		}
	}
}

// parseRule reads the mark that a rule matches; a rule without one has no mask.
func parseRule(m syscall.NetlinkMessage) (update, bool) {
	const header = 12 // struct fib_rule_hdr
	if len(m.Data) < header {
		return update{}, false
	}
	u := update{kind: m.Header.Type, mark: fwmark{family: m.Data[0]}}
	for _, a := range attributes(m.Data, header) {
		if len(a.value) != 4 {
			continue
		}
		switch a.kind {
		case unix.FRA_FWMARK:
			u.mark.value = binary.NativeEndian.Uint32(a.value)
		case unix.FRA_FWMASK:
			u.mark.mask = binary.NativeEndian.Uint32(a.value)
		}
	}
	return u, true
}

// attribute is one of rtnetlink (struct rtattr).
type attribute struct {
	kind  uint16
	value []byte
}

// attributes reads those after the header of a message, up to the first malformed one.
func attributes(b []byte, header int) (all []attribute) {
	for b = b[min(header, len(b)):]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return all
		}
		all = append(all, attribute{binary.NativeEndian.Uint16(b[2:]) &^ unix.NLA_F_NESTED, b[unix.SizeofRtAttr:size]})
		b = b[min(len(b), (size+3)&^3):]
	}
	return all
}

func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, value...)
}

// markOf is a control message that sets one datagram's packet mark.
func markOf(mark uint32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], mark)
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SO_MARK
	h.SetLen(unix.CmsgLen(4))
	return b
}
