// Package ledger records the grants: in a file that survives the process, and in memory.
package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/statefile"
	"sallyport/keys/service"
)

// The ledger file: a header page, then records of a fixed size, then what asked.go describes.
//
//	  0  16  magic
//	 16   1  version
//	 17   1  phase: what the next load is (LoadFirst, LoadAgain, TornDown)
//	 18      zero, up to HeaderSize
//
//	a record, big endian; all zero where free:
//	  0   8  end by the wall clock, nanoseconds since 1970
//	  8   8  end by the boot clock (CLOCK_BOOTTIME), nanoseconds
//	 16  16  source, IPv4 mapped
//	 32  33  client: length, bytes, zeros
//	 65  33  service: the same
//	 98   1  number of port ranges, 0 to 4; or 0x80: one, and a destination; plus 0x10: each port for one flow
//	 99  20  ranges: protocol 1, low 2, high 2; zeros
//	119   1  zero
//	104  16  the destination, IPv4 mapped, in the place of further ranges
//
// Where a port leads elsewhere, 0x08 stands in place of the number of ranges: one port. The port that it leads to
// stands where its range has the high port, and the machine at 104 like a destination; zeros are this host.
//
// The index of the interface of a link-local source stands in bytes 2 to 5 of the source,
// which are zero in every such address (RFC 4291 2.5.6). The length of a network's prefix stands in byte 8,
// which is zero in IPv4 and in networks of at least a /64; byte 98 then has 0x40 as well. With 0x20 the
// address or network is one that was lent to the client. Earlier versions take such records for damaged.
//
//	120   8  sum: SHA-256(boot id || the bytes before)[:8]
const (
	FileName    = "grants"
	Magic       = "sallyport grants"
	Version     = 2 // version 1 had neither destinations nor interfaces
	phaseOffset = 17
	HeaderSize  = 4096

	RecordSize = 128
	sumOffset  = 120
	NameSize   = 33
	MaxRanges  = 4
	// withDestination stands in place of the number of ranges: one range, and a destination.
	withDestination = 0x80
	ofNetwork       = 0x40
	ofLent          = 0x20
	// forOneFlow is added to the number of ranges. Earlier versions, which would admit more, take it for damage.
	forOneFlow = 0x10
	// ledElsewhere stands in place of the number of ranges. Earlier versions, which would lead the port to whatever
	// place their settings name, take it for damage.
	ledElsewhere = 0x08
	linkOffset   = 2      // within the source
	bitsOffset   = 8      // within the source
	Slots        = 131072 // 16 MiB
)

// Phases of the guard, in the header: what the next load is. A new file has LoadFirst.
const (
	LoadFirst byte = iota
	LoadAgain
	TornDown
)

// Holding is a grant of at most MaxRanges ranges as the ledger holds it.
type Holding struct {
	Client, Service string
	Source, To      netip.Addr // To is invalid for this host
	Bits            uint8      // of a network, the length of its prefix; 0: Source alone
	Lent            bool       // by the client's file, wherever the client knocked from
	Link            uint32
	Ports           []service.Ports // exactly one if To is valid; one single port if Led is not zero
	Led             netip.AddrPort  // where the port leads; without a valid address: another port of this host
	Once            bool            // at each port, the first flow takes the grant with it
	Until           time.Time
	Asked           time.Time // the first stamp of the request for it, the latest if there were several; zero: not known
	Slot            int       // index of the record in the file
	due             int       // index in the heap of ends
}

// Ledger is the file that records the grants. Its rules:
//
//   - Every grant in it was decided, and is written before the kernel is changed; if a batch fails, the ledger is
//     written back. A process killed at any instruction leaves at most a grant that was decided, which the next load
//     puts into the kernel.
//   - All space is allocated when the file is made, so a full disk stops no grant.
//   - Records are bound to the boot: after a reboot all are invalid. They end by the wall clock or by the boot clock,
//     whichever is first, so setting the clock back while the process is down prolongs nothing.
//   - A torn or damaged record is no grant.
//
// Records are not synced: a power loss can only lose records that the reboot makes invalid. The phase is synced.
type Ledger struct {
	File    *os.File    // nil: in memory only
	Records io.WriterAt // the file; tests replace it with one that refuses writes
	bootID  string
	Slots   int
	free    []int // free slots; the next to use is last
}

// InMemory returns a ledger without a file.
func InMemory(slots int) *Ledger {
	l := &Ledger{Slots: slots, free: make([]int, 0, slots)}
	for i := slots - 1; i >= 0; i-- {
		l.free = append(l.free, i)
	}
	return l
}

// Open opens the ledger in dir and allocates its space.
func Open(dir, bootID string, slots int) (*Ledger, error) {
	if bootID == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("reading the boot id: %w", err)
		}
		bootID = string(bytes.TrimSpace(b))
	}
	f, err := OpenFile(dir, true)
	if err != nil {
		return nil, err
	}
	if err := preallocate(f, HeaderSize+int64(slots)*(RecordSize+askedSize)); err != nil {
		return nil, errors.Join(fmt.Errorf("allocating space for the ledger: %w", err), f.Close())
	}
	return &Ledger{File: f, Records: f, bootID: bootID, Slots: slots}, nil
}

// OpenFile opens the file and checks its header; with create it makes a missing one.
func OpenFile(dir string, create bool) (*os.File, error) {
	f, err := statefile.Open(filepath.Join(dir, FileName), create)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger: %w", err)
	}
	if err := checkHeader(f); err != nil {
		return nil, errors.Join(fmt.Errorf("ledger %q: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

func checkHeader(f *os.File) error {
	want := append([]byte(Magic), Version)
	earlier := append([]byte(Magic), 1) // its records have the same meaning
	have := make([]byte, len(want))
	n, err := f.ReadAt(have, 0)
	if err != nil && err != io.EOF {
		return err
	}
	// A file whose creation was interrupted is short or all zero.
	if n < len(want) || bytes.Equal(have, make([]byte, len(want))) || bytes.Equal(have, earlier) {
		_, err := f.WriteAt(want, 0)
		return err
	}
	if !bytes.Equal(have, want) {
		return errors.New("not a grant ledger of this version: move it away to get a new one without grants")
	}
	return nil
}

// preallocate writes zeros from the end of the file up to size. On file systems that write in place, written zeros,
// unlike reserved space, need no more space later.
func preallocate(f *os.File, size int64) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for end < size {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-end)], end)
		if err != nil {
			return err
		}
		end += int64(n)
	}
	return nil
}

// Read returns the holdings that are live at now, and finds the free slots. It erases all other records: one that has
// ended would be live again if the clock were set back.
func (l *Ledger) Read(now time.Time) ([]*Holding, error) {
	if l.File == nil {
		return nil, nil
	}
	boot, err := clock.Boot()
	if err != nil {
		return nil, err
	}
	all := make([]byte, l.Slots*(RecordSize+askedSize))
	if _, err := l.File.ReadAt(all, HeaderSize); err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}
	asked := all[l.Slots*RecordSize:]
	var hs []*Holding
	var free [RecordSize]byte
	l.free = l.free[:0]
	seen := make(map[Key]bool)
	for slot := l.Slots - 1; slot >= 0; slot-- {
		record := all[slot*RecordSize:][:RecordSize]
		h, ok := l.decode(record, boot, now)
		if ok && !seen[h.Key()] { // a second one is forged, and would outlive a revocation
			seen[h.Key()] = true
			h.Slot, h.Asked = slot, l.decodeAsked(record, asked[slot*askedSize:][:askedSize])
			hs = append(hs, h)
			continue
		}
		if !bytes.Equal(record, free[:]) {
			if err := l.put(slot, &free); err != nil {
				return nil, err
			}
		}
		l.free = append(l.free, slot)
	}
	return hs, nil
}

// Book returns a book of the holdings that are live at now, up to size elements in each family. It erases all others.
func (l *Ledger) Book(now time.Time, size int) (*Book, error) {
	hs, err := l.Read(now)
	if err != nil {
		return nil, err
	}
	book, left := NewBook(l.Release), room{v4: size, v6: size}
	for _, h := range hs {
		if left.reserve(h) {
			book.Add(h)
			continue
		}
		if err := l.Erase(h); err != nil {
			return nil, err
		}
		l.Release(h.Slot)
	}
	return book, nil
}

// room is how many elements the set of each family can still take. A forged ledger can hold grants of more ports than
// that, and a guard with all of them would not load.
type room struct{ v4, v6 int }

// reserve takes the elements that the holding needs, or returns false if there are too few.
func (r *room) reserve(h *Holding) bool {
	left := &r.v6
	if h.Source.Is4() {
		left = &r.v4
	}
	need := 0
	for _, p := range h.Ports {
		need += int(p.High) - int(p.Low) + 1
	}
	if need > *left {
		return false
	}
	*left -= need
	return true
}

// Write writes h's record.
func (l *Ledger) Write(h *Holding, now time.Time) error {
	if l.File == nil {
		return nil
	}
	boot, err := clock.Boot()
	if err != nil {
		return err
	}
	var r [RecordSize]byte
	l.encode(&r, h, h.Until, boot+guard.Remaining(h.Until, now))
	if !h.Asked.IsZero() {
		if err := l.putAsked(h.Slot, r[:], h.Asked); err != nil {
			return err
		}
	}
	return l.put(h.Slot, &r)
}

// Erase clears h's record in the file. Release frees the slot.
func (l *Ledger) Erase(h *Holding) error {
	if l.File == nil {
		return nil
	}
	return l.put(h.Slot, &[RecordSize]byte{})
}

func (l *Ledger) put(slot int, r *[RecordSize]byte) error {
	if _, err := l.Records.WriteAt(r[:], HeaderSize+int64(slot)*RecordSize); err != nil {
		return fmt.Errorf("writing the ledger: %w", err)
	}
	return nil
}

// Allocate returns a free slot; there must be one.
func (l *Ledger) Allocate() int {
	last := len(l.free) - 1
	slot := l.free[last]
	l.free = l.free[:last]
	return slot
}

// Spare returns the number of free slots and of all slots.
func (l *Ledger) Spare() (free, all int) { return len(l.free), l.Slots }

// Release frees a slot.
func (l *Ledger) Release(slot int) { l.free = append(l.free, slot) }

func (l *Ledger) encode(r *[RecordSize]byte, h *Holding, until time.Time, boot time.Duration) {
	binary.BigEndian.PutUint64(r[0:], uint64(until.UnixNano()))
	binary.BigEndian.PutUint64(r[8:], uint64(boot))
	source := h.Source.As16()
	copy(r[16:], source[:])
	if h.Link != 0 {
		binary.BigEndian.PutUint32(r[16+linkOffset:], h.Link)
	}
	if h.Bits != 0 {
		r[16+bitsOffset] = h.Bits
	}
	putName(r[32:32+NameSize], h.Client)
	putName(r[65:65+NameSize], h.Service)
	r[98] = byte(len(h.Ports))
	if h.To.IsValid() {
		r[98] = withDestination
		to := h.To.As16()
		copy(r[104:], to[:])
	}
	if h.Leads() {
		r[98] = ledElsewhere
	}
	if h.Bits != 0 {
		r[98] |= ofNetwork
	}
	if h.Lent {
		r[98] |= ofLent
	}
	if h.Once {
		r[98] |= forOneFlow
	}
	for i, p := range h.Ports {
		b := r[99+5*i:]
		b[0] = byte(p.Proto)
		binary.BigEndian.PutUint16(b[1:], p.Low)
		binary.BigEndian.PutUint16(b[3:], p.High)
	}
	if h.Leads() {
		binary.BigEndian.PutUint16(r[102:], h.Led.Port())
		if at := h.Led.Addr(); at.IsValid() {
			machine := at.As16()
			copy(r[104:], machine[:])
		}
	}
	copy(r[sumOffset:], l.sum(r[:sumOffset]))
}

// decode returns the holding of a record that is live at boot and now, or false. The sum contains no secret: an
// attacker who took over the daemon can forge a record, which root reads at the next start. So a record counts only
// if encode would write the same bytes, for a grant that may be given.
func (l *Ledger) decode(r []byte, boot time.Duration, now time.Time) (*Holding, bool) {
	wall, end := int64(binary.BigEndian.Uint64(r[0:])), int64(binary.BigEndian.Uint64(r[8:]))
	ranges := int(r[98] &^ (ofNetwork | ofLent | forOneFlow))
	far, leads := ranges == withDestination, ranges == ledElsewhere
	if far || leads {
		ranges = 1
	}
	if end < 0 || ranges > MaxRanges || r[32] >= NameSize || r[65] >= NameSize {
		return nil, false
	}
	h := &Holding{
		Client:  name(r[32 : 32+NameSize]),
		Service: name(r[65 : 65+NameSize]),
		Lent:    r[98]&ofLent != 0,
		Once:    r[98]&forOneFlow != 0,
	}
	source := [16]byte(r[16:32])
	if r[98]&ofNetwork != 0 {
		h.Bits, source[bitsOffset] = source[bitsOffset], 0
	}
	h.Source, h.Link = decodeSource(source)
	if far {
		h.To = netip.AddrFrom16([16]byte(r[104:120])).Unmap()
	}
	for i := range ranges {
		b := r[99+5*i:]
		h.Ports = append(h.Ports, service.Ports{Proto: service.Proto(b[0]), Low: binary.BigEndian.Uint16(b[1:]),
			High: binary.BigEndian.Uint16(b[3:])})
	}
	if leads {
		h.Ports[0].High, h.Led = h.Ports[0].Low, netip.AddrPortFrom(decodePlace(r[104:120]), h.Ports[0].High)
	}
	var again [RecordSize]byte
	if l.encode(&again, h, time.Unix(0, wall), time.Duration(end)); !bytes.Equal(again[:], r) {
		return nil, false
	}
	left := min(time.Unix(0, wall).Sub(now), time.Duration(end)-boot)
	h.Until = now.Add(left)       // with now's monotonic reading, so that setting the clock later moves nothing
	return h, h.Check(now) == nil // Check also rejects a grant that has ended
}

// decodePlace returns the machine that a port leads to; invalid: this host.
func decodePlace(b []byte) netip.Addr {
	if a := netip.AddrFrom16([16]byte(b)); !a.IsUnspecified() {
		return a.Unmap()
	}
	return netip.Addr{}
}

// decodeSource separates the interface index from a link-local source.
func decodeSource(b [16]byte) (netip.Addr, uint32) {
	a := netip.AddrFrom16(b).Unmap()
	if !guard.LinkLocal(a) {
		return a, 0
	}
	link := binary.BigEndian.Uint32(b[linkOffset:])
	clear(b[linkOffset:][:4])
	return netip.AddrFrom16(b), link
}

func (l *Ledger) sum(b []byte) []byte {
	var room [2 * RecordSize]byte // no allocation: each grant has a sum
	sum := sha256.Sum256(append(append(room[:0], l.bootID...), b...))
	return sum[:RecordSize-sumOffset]
}

func putName(b []byte, s string) { b[0] = byte(copy(b[1:], s)) }

func name(b []byte) string { return string(b[1 : 1+b[0]]) }

// Alone calls do while no other process, and no other open file of this one, is inside Alone. So no teardown comes
// between reading the phase, changing the kernel and writing the phase.
func (l *Ledger) Alone(do func() error) error {
	if l.File == nil {
		return do()
	}
	return statefile.Alone(l.File, do)
}

// Phase returns what the next load is. Another process may have changed it.
func (l *Ledger) Phase() (byte, error) {
	if l.File == nil {
		return LoadAgain, nil
	}
	var b [1]byte
	if _, err := l.File.ReadAt(b[:], phaseOffset); err != nil {
		return 0, fmt.Errorf("reading the ledger: %w", err)
	}
	return b[0], nil
}

// SetPhase writes what the next load is.
func (l *Ledger) SetPhase(phase byte) error {
	if l.File == nil {
		return nil
	}
	return WritePhase(l.File, phase)
}

// WritePhase writes the phase and syncs it: a power loss may come before the next load.
func WritePhase(f *os.File, phase byte) error {
	if _, err := f.WriteAt([]byte{phase}, phaseOffset); err != nil {
		return fmt.Errorf("writing the ledger: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing the ledger: %w", err)
	}
	return nil
}

// Close closes the file.
func (l *Ledger) Close() error {
	if l.File == nil {
		return nil
	}
	return l.File.Close()
}
