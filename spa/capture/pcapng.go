package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"time"

	"github.com/google/gopacket/layers"
)

// Types of block of a pcapng file, and sizes (draft-ietf-opsawg-pcapng, section 4).
const (
	ngSection   = 0x0a0d0d0a // the same in either byte order
	ngInterface = 1
	ngOldPacket = 2
	ngSimple    = 3
	ngPacket    = 6

	ngByteOrder = 0x1a2b3c4d
	ngFrame     = 12 // of each block: its type, and its length before and after its body
	maxBlock    = 2 * maxRecord
)

// ngRecords are the packets of a pcapng file. The readers of pcapgo are no choice for a file from an attacker: that of
// google/gopacket can be made to divide by zero, and that of gopacket/gopacket (1.7.7) keeps all names, options and
// packets of a file, so one of 32 MB takes a gigabyte. It also reads times in whole seconds as microseconds, accepts
// a block whose two lengths differ, and would add a second copy of all layers to the program.
type ngRecords struct {
	r     *bufio.Reader
	order binary.ByteOrder
	links []ngLink // of the section, by their number
	body  []byte   // of the last block
}

// ngLink is an interface at which packets were captured.
type ngLink struct {
	kind   layers.LinkType
	second uint64 // units of a packet's time per second
	offset int64  // seconds to add to that
}

func newNgRecords(r *bufio.Reader) *ngRecords {
	return &ngRecords{r: r, order: binary.LittleEndian}
}

func (n *ngRecords) next() (record, error) {
	for {
		kind, err := n.block()
		if err != nil {
			return record{}, err
		}
		switch kind {
		case ngSection:
			n.links = n.links[:0]
		case ngInterface:
			err = n.addLink()
		case ngSimple:
			err = errors.New("it has no time (a simple packet block)")
		case ngPacket, ngOldPacket:
			return n.packet(kind)
		}
		if err != nil {
			return record{}, err
		}
	}
}

// block reads the next block and returns its type. If it matters, it is in the body.
func (n *ngRecords) block() (uint32, error) {
	head, err := n.r.Peek(8)
	if errors.Is(err, io.EOF) && len(head) > 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, err
	}
	kind := n.order.Uint32(head)
	if kind == ngSection {
		if err := n.section(); err != nil {
			return 0, err
		}
	}
	length := n.order.Uint32(head[4:])
	if length < ngFrame || length%4 != 0 {
		return 0, fmt.Errorf("a block of %d bytes", length)
	}
	switch kind {
	case ngSection, ngInterface, ngOldPacket, ngSimple, ngPacket:
		return kind, n.readBlock(length)
	}
	_, err = io.CopyN(io.Discard, n.r, int64(length))
	return kind, cut(err)
}

// section learns the byte order from a section's header, which has not been read yet.
func (n *ngRecords) section() error {
	head, err := n.r.Peek(16)
	if err != nil {
		return cut(err)
	}
	switch uint32(ngByteOrder) {
	case binary.LittleEndian.Uint32(head[8:]):
		n.order = binary.LittleEndian
	case binary.BigEndian.Uint32(head[8:]):
		n.order = binary.BigEndian
	default:
		return errors.New("a section without a valid byte order")
	}
	if version := n.order.Uint16(head[12:]); version != 1 {
		return fmt.Errorf("a section of version %d: only 1 is known", version)
	}
	return nil
}

// readBlock reads the rest of a block, length bytes in all.
func (n *ngRecords) readBlock(length uint32) error {
	if length > maxBlock {
		return fmt.Errorf("a block of %d bytes", length)
	}
	n.body = slices.Grow(n.body[:0], int(length))[:length]
	if _, err := io.ReadFull(n.r, n.body); err != nil {
		return cut(err)
	}
	if again := n.order.Uint32(n.body[length-4:]); again != length {
		return fmt.Errorf("a block of %d bytes whose end says %d", length, again)
	}
	n.body = n.body[8 : length-4]
	return nil
}

// cut makes the end of a file within a block an error.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var errShortBlock = errors.New("a block that is too short for its contents")

// Options of an interface's description.
const (
	ngResolution = 9
	ngOffset     = 14
)

func (n *ngRecords) addLink() error {
	b := n.body
	if len(b) < 8 {
		return errShortBlock
	}
	link := ngLink{kind: layers.LinkType(n.order.Uint16(b)), second: 1e6}
	for b = b[8:]; len(b) >= 4; {
		code, size := n.order.Uint16(b), int(n.order.Uint16(b[2:]))
		padded := 4 + (size+3)&^3
		if padded > len(b) {
			return errShortBlock
		}
		switch value := b[4 : 4+size]; {
		case code == ngResolution && size == 1:
			link.second = resolution(value[0])
		case code == ngOffset && size == 8:
			link.offset = int64(n.order.Uint64(value))
		}
		b = b[padded:]
	}
	if link.second == 0 {
		return errors.New("an interface with an unknown time resolution")
	}
	n.links = append(n.links, link)
	return nil
}

// resolution returns the number of units per second: a power of two or of ten. Zero: too many.
func resolution(r byte) uint64 {
	exponent := int(r & 0x7f)
	switch {
	case r&0x80 != 0:
		return 1 << exponent
	case exponent > 19:
		return 0
	}
	units := uint64(1)
	for range exponent {
		units *= 10
	}
	return units
}

func (n *ngRecords) packet(kind uint32) (record, error) {
	const header = 20
	b := n.body
	if len(b) < header {
		return record{}, errShortBlock
	}
	number := n.order.Uint32(b)
	if kind == ngOldPacket {
		number = uint32(n.order.Uint16(b))
	}
	if uint64(number) >= uint64(len(n.links)) {
		return record{}, fmt.Errorf("interface %d has no description before this packet", number)
	}
	link := n.links[number]
	at, err := link.time(uint64(n.order.Uint32(b[4:]))<<32 | uint64(n.order.Uint32(b[8:])))
	if err != nil {
		return record{}, err
	}
	size := n.order.Uint32(b[12:])
	if uint64(size) > uint64(len(b)-header) {
		return record{}, errShortBlock
	}
	return record{b[header : header+size], int(n.order.Uint32(b[16:])), at, link.kind}, nil
}

// maxSeconds is in the year 2242: nanoseconds since 1970 fit into 64 bits until 2262.
const maxSeconds = 1 << 33

// time returns a packet's time from its units.
func (l ngLink) time(units uint64) (time.Time, error) {
	seconds := int64(units/l.second) + l.offset
	if seconds < 0 || seconds > maxSeconds {
		return time.Time{}, errors.New("it has an impossible time")
	}
	high, low := bits.Mul64(units%l.second, 1e9)
	nanoseconds, _ := bits.Div64(high, low, l.second)
	return time.Unix(seconds, int64(nanoseconds)).UTC(), nil
}
