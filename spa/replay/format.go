package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The file: two header pages, written in turn, then slots. A slot is free (all zero, or what it
// holds is at or before its key's floor), a spent nonce, or ten floors. Little endian.
//
//	spent    0  4  CRC-32C of the 124 bytes that follow
//	         4  1  kind 1
//	         5  1  flags: 1 the request id was used for another request before
//	         8  8  key
//	        16 24  nonce
//	        40 16  request id
//	        56  8  digest
//	        64  8  stamp, nanoseconds
//	        72 16  from, v4-mapped
//	        88  8  stamp of the first packet with this request id
//	        96  8  the server's time then
//	       128  4  CRC-32C of the spent nonce's CRC-32C and the 124 bytes that follow; all zero: no outcome
//	       132  1  length of the outcome
//	       136 112 outcome
//	floors   0  4  CRC-32C of the 252 bytes that follow
//	         4  1  kind 2 (keys) or 3 (topics)
//	        16 240 ten of name (16) and stamp (8); stamp zero: vacant
const (
	version    = 1
	page       = 4096
	slotSize   = 256
	half       = slotSize / 2
	firstSlot  = 2 * page
	headerSize = 128

	kindSpent  = 1
	kindKeys   = 2
	kindTopics = 3

	floorSize = 24
	perSlot   = (slotSize - 16) / floorSize
)

// Limits of what a file can make Open read, remember or compute. The daemon writes the file and root reads it at the
// next start, so a compromised daemon controls all of it.
const (
	maxRoom   = 1 << 21 // slots, 512 MiB
	maxNames  = 1 << 21 // of keys, and of topics
	maxStamp  = 1 << 62 // nanoseconds: the year 2116
	maxWindow = 1 << 60 // nanoseconds; maxStamp with some of them still fits
	maxNumber = 1 << 63 // header writes
)

var (
	errDamaged = errors.New("journal damaged")
	errLong    = fmt.Errorf("a journal may have at most %d MiB", offset(maxRoom)>>20)
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	magic      = [8]byte{'s', 'p', 'a', 'r', 'p', 'l', 'a', 'y'}
)

// header identifies the journal's boot and machine, and the stamps that it does not answer for.
type header struct {
	Magic     [8]byte
	Version   uint32
	Reason    reason
	_         [3]byte
	Number    uint64 // counts header writes: the greater is the newer, and its lowest bit is its page
	Boot      [16]byte
	Machine   [16]byte
	HighWater int64 // no stamp after it was admitted
	Floor     int64
	Room      int64 // slots that the file holds at least
	Window    int64 // the stamps after HighWater are admitted by this one; zero: not known
}

func (h header) encode() []byte {
	h.Magic, h.Version = magic, version
	b := make([]byte, 4, headerSize)
	b, _ = binary.Append(b, binary.LittleEndian, h)
	b = append(b, make([]byte, headerSize-len(b))...)
	sign(b, 0)
	return b
}

func decodeHeader(b []byte) (header, error) {
	if !signed(b, 0) {
		return header{}, fmt.Errorf("%w: header does not verify", errDamaged)
	}
	var h header
	if _, err := binary.Decode(b[4:], binary.LittleEndian, &h); err != nil {
		return header{}, err
	}
	if h.Magic != magic || h.Version != version {
		return header{}, fmt.Errorf("%w: not a journal of version %d", errDamaged, version)
	}
	if h.Number >= maxNumber || h.HighWater > maxStamp || h.Floor > maxStamp || h.Window < 0 || h.Window > maxWindow {
		return header{}, fmt.Errorf("%w: a header with impossible values", errDamaged)
	}
	return h, nil
}

func sign(b []byte, seed uint32) {
	binary.LittleEndian.PutUint32(b, crc32.Update(seed, castagnoli, b[4:]))
}

func signed(b []byte, seed uint32) bool {
	return binary.LittleEndian.Uint32(b) == crc32.Update(seed, castagnoli, b[4:])
}

// entry is a spent nonce as it is kept in memory, at the index of its slot. Its neighbours are
// the spent nonces of the same key in the order of their stamps, in a ring.
type entry struct {
	nonce      [24]byte
	request    [16]byte
	digest     [8]byte
	from       [16]byte
	stamp      int64
	first      int64
	at         int64
	owner      int32 // index of its key
	prev, next int32
	live       bool
	reused     bool
	settled    bool
}

// encode writes the entry of a key, and its outcome if there is one, into a whole slot.
func (e *entry) encode(b *[slotSize]byte, key uint64, outcome []byte) {
	clear(b[:])
	le := binary.LittleEndian
	b[4] = kindSpent
	if e.reused {
		b[5] = 1
	}
	le.PutUint64(b[8:], key)
	copy(b[16:40], e.nonce[:])
	copy(b[40:56], e.request[:])
	copy(b[56:64], e.digest[:])
	le.PutUint64(b[64:], uint64(e.stamp))
	copy(b[72:88], e.from[:])
	le.PutUint64(b[88:], uint64(e.first))
	le.PutUint64(b[96:], uint64(e.at))
	sign(b[:half], 0)
	if outcome != nil {
		encodeOutcome(b, outcome)
	}
}

// encodeOutcome writes the outcome beside the entry that the slot, else zero, holds. The checksum binds the two,
// so that no outcome is ever told to another request.
func encodeOutcome(b *[slotSize]byte, outcome []byte) {
	b[132] = byte(len(outcome))
	copy(b[136:248], outcome)
	sign(b[half:], binary.LittleEndian.Uint32(b[:]))
}

func decodeEntry(b []byte) (key uint64, e entry, err error) {
	le := binary.LittleEndian
	if !signed(b[:half], 0) {
		return 0, entry{}, fmt.Errorf("%w: a spent nonce does not verify", errDamaged)
	}
	outcome, err := decodeOutcome(b)
	if err != nil {
		return 0, entry{}, err
	}
	e = entry{
		nonce: [24]byte(b[16:40]), request: [16]byte(b[40:56]), digest: [8]byte(b[56:64]), from: [16]byte(b[72:88]),
		stamp: int64(le.Uint64(b[64:])), first: int64(le.Uint64(b[88:])), at: int64(le.Uint64(b[96:])),
		live: true, reused: b[5]&1 != 0, settled: outcome != nil,
	}
	return le.Uint64(b[8:]), e, nil
}

// decodeOutcome returns the outcome beside the entry that the slot holds, nil if there is none.
func decodeOutcome(b []byte) ([]byte, error) {
	if isZero(b[half:slotSize]) {
		return nil, nil
	}
	n := int(b[132])
	if !signed(b[half:slotSize], binary.LittleEndian.Uint32(b)) || n > MaxOutcome {
		return nil, fmt.Errorf("%w: an outcome does not verify", errDamaged)
	}
	return append(make([]byte, 0, n), b[136:136+n]...), nil
}

// floor is a time, for a key or a topic: requests stamped at or before it are refused. The header has one for all.
type floor struct {
	name  [16]byte
	stamp int64
}

func (f *floor) encode(b []byte) {
	copy(b, f.name[:])
	binary.LittleEndian.PutUint64(b[16:], uint64(f.stamp))
}

func decodeFloor(b []byte) floor {
	return floor{name: [16]byte(b), stamp: int64(binary.LittleEndian.Uint64(b[16:]))}
}

func isZero(b []byte) bool {
	for len(b) > slotSize {
		if !isZero(b[:slotSize]) {
			return false
		}
		b = b[slotSize:]
	}
	return bytes.Equal(b, make([]byte, slotSize)[:len(b)])
}
