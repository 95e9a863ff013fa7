package replay

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// disk is the file under a journal. A write inside one page is seen whole or not at all by a reader after the writing
// process is gone.
type disk interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Grow(from, size int64) error // reserves the space between; new bytes are zero
	Truncate(size int64) error
	Sync() error
	Close() error
}

const (
	// lead is how far the high-water mark is ahead of the packets. Longer means fewer syncs, and a longer silence after
	// a reboot.
	lead = 10 * time.Second
	// growth is how many slots the file grows by; fewer if the disk has no more space.
	growth    = 4096
	minGrowth = page / slotSize
)

// store is the file as slots, and its header.
type store struct {
	disk disk
	buf  *[slotSize]byte // allocated by itself: it does not cross a page, so a write takes one copy
	room atomic.Int32    // slots in the file
	next int32           // slots from here on were never used
	free []int32         // used before

	floor  int64 // stamps at or before it are refused
	reason reason

	highWater  atomic.Int64 // synced high-water mark
	advancing  atomic.Bool
	background sync.WaitGroup
	syncing    sync.Mutex
	header     header // guarded by syncing; the last that is synced
}

func newStore(d disk) *store { return &store{disk: d, buf: new([slotSize]byte)} }

func offset(slot int32) int64 { return firstSlot + int64(slot)*slotSize }

// allocate returns a slot that may be overwritten, growing the file if there is none.
func (s *store) allocate() (int32, error) {
	if n := len(s.free); n > 0 {
		slot := s.free[n-1]
		s.free = s.free[:n-1]
		return slot, nil
	}
	if s.next == s.room.Load() {
		if err := s.grow(); err != nil {
			return 0, fmt.Errorf("journal full, growing it: %w", err)
		}
	}
	s.next++
	return s.next - 1, nil
}

func (s *store) release(slot int32) { s.free = append(s.free, slot) }

// grow does not touch the header: its next write, with the next high-water mark, records the new room. Until then Open
// uses the file's size.
func (s *store) grow() error {
	var err error
	for _, by := range []int32{growth, minGrowth} {
		room := s.room.Load() + by
		if room > maxRoom {
			err = errLong
			continue
		}
		if err = s.disk.Grow(offset(s.room.Load()), offset(room)); err == nil {
			s.room.Store(room)
			return nil
		}
	}
	return err
}

// write puts the buffer into a slot.
func (s *store) write(slot int32) error {
	if _, err := s.disk.WriteAt(s.buf[:], offset(slot)); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	return nil
}

// read fetches a slot into the buffer.
func (s *store) read(slot int32) error {
	if _, err := s.disk.ReadAt(s.buf[:], offset(slot)); err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	return nil
}

// cover returns nil once a synced high-water mark is at or after the stamp. While packets come, it is advanced beside
// them; only the first after a silence waits for the disk.
func (s *store) cover(stamp int64) error {
	if stamp > s.highWater.Load() {
		return s.advance(stamp + int64(lead))
	}
	s.keepAhead(stamp)
	return nil
}

// keepAhead syncs a new high-water mark in the background when the old one is nearly used up. It does not report
// failure: the packet that needs it tries again and is refused.
func (s *store) keepAhead(stamp int64) {
	if stamp <= s.highWater.Load()-int64(lead)/2 || !s.advancing.CompareAndSwap(false, true) {
		return
	}
	s.background.Go(func() {
		defer s.advancing.Store(false)
		_ = s.advance(stamp + int64(lead))
	})
}

// advance syncs a high-water mark at or after to.
func (s *store) advance(to int64) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if to <= s.highWater.Load() {
		return nil
	}
	h := s.header
	h.HighWater = to
	return s.commit(h)
}

// commit writes the header over the older of the two and syncs it. Only then does it count as written: a failed or
// torn write is followed by another to the same page, never to the page with the valid header.
func (s *store) commit(h header) error {
	h.Number, h.Room = s.header.Number+1, int64(s.room.Load())
	if _, err := s.disk.WriteAt(h.encode(), int64(h.Number%2)*page); err != nil {
		return fmt.Errorf("writing the journal's header: %w", err)
	}
	if err := s.disk.Sync(); err != nil {
		return fmt.Errorf("syncing the high-water mark: %w", err)
	}
	s.header = h
	s.highWater.Store(h.HighWater)
	return nil
}

// readHeader reads both headers and keeps the newer. If one does not verify that is damage, but the other's
// high-water mark still counts.
func (s *store) readHeader() error {
	var damage error
	for n := range int64(2) {
		b := make([]byte, headerSize)
		if _, err := s.disk.ReadAt(b, n*page); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the journal's header: %w", err)
		}
		h, err := decodeHeader(b)
		if err != nil {
			damage = err
			continue
		}
		if h.Number >= s.header.Number {
			s.header = h
		}
	}
	if damage != nil {
		return damage
	}
	return s.readRoom()
}

func (s *store) readRoom() error {
	size, err := s.disk.Size()
	if err != nil {
		return fmt.Errorf("querying the journal's size: %w", err)
	}
	room := max(0, size-firstSlot) / slotSize
	if room < s.header.Room {
		return fmt.Errorf("%w: cut short", errDamaged)
	}
	if room > maxRoom {
		return fmt.Errorf("%w: %w", errDamaged, errLong)
	}
	s.room.Store(int32(room))
	return nil
}

// each calls fn for the slots before end in order, stopping at the first error.
func (s *store) each(end int32, fn func(slot int32, b []byte) error) error {
	b := make([]byte, min(growth, end)*slotSize)
	for at := int32(0); at < end; at += growth {
		part := b[:min(growth, end-at)*slotSize]
		if _, err := s.disk.ReadAt(part, offset(at)); err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
		for i := range int32(len(part) / slotSize) {
			if err := fn(at+i, part[i*slotSize:][:slotSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

// scrub zeroes every slot that is not zero.
func (s *store) scrub() error {
	*s.buf = [slotSize]byte{}
	return s.each(s.room.Load(), func(slot int32, b []byte) error {
		if isZero(b) {
			return nil
		}
		return s.write(slot)
	})
}

// close waits for a high-water mark that is being synced.
func (s *store) close() error {
	s.background.Wait()
	return s.disk.Close()
}
