package main

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
)

const (
	statusGranted  = 1
	statusClosed   = 2
	statusRefused  = 16 // and all above
	statusTooEarly = 28
	receiptContent = 112
)

var refusals = map[byte]string{
	16: "the client's key has expired",
	17: "no such service here",
	18: "not allowed for this client",
	19: "this client has to state its source address",
	20: "too many open at a time",
	21: "too many in an hour",
	22: "closed or revoked after the command was first made, or shortly before",
	23: "the request id was used for another request",
	24: "the server could not do it",
	25: "outside the days and hours that the administrator set",
	26: "too many ports open at a time",
	27: "the service has no address of the family that was knocked by",
	28: "too early after the server's start",
}

// receipt is what section 6 describes.
type receipt struct {
	status   byte
	time     int64 // the server's clock
	source   netip.Addr
	again    int64 // of one that says too early: stamps after it are taken
	services []grant
}

type grant struct {
	millis uint32
	ranges []portRange
	more   bool
}

type portRange struct {
	protocol  byte
	low, high uint16
}

func (r portRange) String() string {
	name := "tcp"
	if r.protocol == udp {
		name = "udp"
	}
	if r.low == r.high {
		return fmt.Sprintf("%s/%d", name, r.low)
	}
	return fmt.Sprintf("%s/%d-%d", name, r.low, r.high)
}

func (r receipt) refused() bool { return r.status >= statusRefused }

var errNotReceipt = errors.New("not the receipt for this packet")

// openReceipt reads a datagram if it is the receipt for the packet. The checks
// are those at the end of section 6, in their order.
func (s *session) openReceipt(packet, datagram []byte) (receipt, error) {
	if len(datagram) != len(packet) || len(packet) < minPacket {
		return receipt{}, errNotReceipt
	}
	end := len(datagram) - macSize
	want := s.receiptMACOf(packet, datagram[:end])
	if subtle.ConstantTimeCompare(want, datagram[end:]) != 1 {
		return receipt{}, errNotReceipt
	}
	body, err := xchacha(s.receiptCipher, datagram[:nonceSize], datagram[nonceSize:end])
	if err != nil {
		return receipt{}, err
	}
	return parseReceipt(body[:receiptContent])
}

// receiptMACOf is the mac of a receipt for the packet; head is the receipt
// without its mac.
func (s *session) receiptMACOf(packet, head []byte) []byte {
	return mac(s.receiptMAC, []byte("sallyport 1 receipt"), s.serverID[:], packet[:nonceSize], head)
}

// parseReceipt reads the content, which padding follows.
func parseReceipt(content []byte) (receipt, error) {
	d := &decoder{rest: content}
	if v := d.u8(); v != version {
		return receipt{}, fmt.Errorf("version %d", v)
	}
	r := receipt{status: d.u8()}
	count := d.count(r.countBounds())
	r.time = int64(d.u64())
	r.source = d.address()
	if r.status == statusTooEarly {
		r.again = int64(d.u64())
	}
	for range count {
		r.services = append(r.services, d.grant())
	}
	return r, d.err
}

// countBounds says how many services stand in a receipt with this status. No
// number is right for a malformed status.
func (r receipt) countBounds() (least, most int) {
	switch {
	case r.status == statusGranted:
		return 1, maxServices
	case r.status == statusClosed:
		return 0, maxServices
	case r.refused():
		return 0, 0
	}
	return 1, 0
}

func (d *decoder) grant() grant {
	g := grant{millis: d.u32()}
	ranges := d.u8()
	g.more = ranges&0x80 != 0
	for range ranges & 0x7f {
		g.ranges = append(g.ranges, d.portRange())
	}
	return g
}

func (d *decoder) portRange() portRange {
	r := portRange{protocol: d.u8(), low: d.u16(), high: d.u16()}
	if d.err == nil && (r.protocol != tcp && r.protocol != udp || r.low == 0 || r.low > r.high) {
		d.err = errors.New("malformed range of ports")
	}
	return r
}
