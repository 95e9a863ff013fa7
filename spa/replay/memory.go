package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// spread is how far apart the stamps may be of a request's packets that do not tell its first. Nobody else knows of a
// forgotten request, so it must be remembered until none of its packets is fresh, including packets that were held
// back.
const spread = 30 * time.Second

// Limits of the clean-up that each Admit does, so that no call ever sweeps everything.
const (
	looks  = 8 // slots looked at for expired nonces
	finds  = 2 // of them acted on
	atOnce = 4 // nonces of one key forgotten at a time
)

type nonceOf struct {
	owner int32
	nonce [24]byte
}

type requestOf struct {
	owner int32
	id    [16]byte
}

// holding is a key's part of the memory: a ring of entries in the order of their stamps.
type holding struct {
	oldest int32 // valid while there are any
	last   int32 // the limit-th from the newest; valid while there are as many
	count  int32
}

// memory is the journal's content. A nonce is remembered until no packet of its request can be fresh. Then it is
// forgotten, and the floor of its key, raised to its stamp, takes its place.
type memory struct {
	window   int64
	keep     int64        // how long after its stamp a nonce is remembered
	limit    int32        // live nonces a key
	most     int64        // remembered nonces a key
	entries  arena[entry] // at the index of their slots
	spent    map[nonceOf]int32
	requests map[requestOf]int32 // the entry with the latest stamp
	keys     floors
	topics   floors
	holdings arena[holding] // at the index of their keys
	live     int
	hand     int32 // the slot that is looked at next
	clock    int64 // the server's, as the last admission told it
	soonest  int64 // no nonce expires before this time
}

func newMemory(c Config) memory {
	keep := c.Window + max(c.Window, spread)
	windows := (keep + c.Window - 1) / c.Window
	return memory{
		window: int64(c.Window), keep: int64(keep), limit: int32(c.LiveNonces), most: int64(c.LiveNonces) * int64(windows),
		spent: make(map[nonceOf]int32), requests: make(map[requestOf]int32),
		keys: newFloors(kindKeys), topics: newFloors(kindTopics), soonest: math.MaxInt64, clock: math.MinInt64,
	}
}

func keyName(key uint64) (name [16]byte) {
	binary.LittleEndian.PutUint64(name[:], key)
	return name
}

// owner returns the index of a key, and creates one for a new key.
func (m *memory) owner(s *store, key uint64) (int32, error) {
	if i, ok := m.keys.index[keyName(key)]; ok {
		return i, nil
	}
	return m.name(s, &m.keys, keyName(key))
}

// name creates a place for a new name. Its slot is in the file from then on, so that neither raising nor loading it
// ever needs space.
func (m *memory) name(s *store, f *floors, name [16]byte) (int32, error) {
	if len(f.vacant) == 0 {
		if f.full() {
			return 0, fmt.Errorf("journal full: %d names", maxNames)
		}
		slot, err := m.allocate(s)
		if err != nil {
			return 0, err
		}
		f.append(slot)
		if err := f.write(s, int32(len(f.slots)-1)); err != nil {
			return 0, err
		}
	}
	return f.settle(name), nil
}

func (m *memory) expired(e *entry) bool { return e.live && m.clock > e.stamp+m.keep }

// full reports whether a key has as many live nonces as it may. Remembered nonces that are no longer fresh do not
// count. But there is a limit on all: as many for each window of the time that they are remembered for. A client
// whose stamps are the server's time never meets it; nonces with stamps that are stale at once cannot take space
// without end.
func (m *memory) full(owner int32) bool {
	h := m.holdings.at(owner)
	if h.count < m.limit {
		return false
	}
	return int64(h.count) >= m.most || m.clock <= m.entries.at(h.last).stamp+m.window
}

// remember keeps an entry at the index of its slot.
func (m *memory) remember(slot int32, e entry) {
	e.live = true
	*m.entries.at(slot) = e
	m.spent[nonceOf{e.owner, e.nonce}] = slot
	m.link(slot)
	m.live++
	m.soonest = min(m.soonest, e.stamp+m.keep)
	if !e.reused && m.latest(slot) {
		m.requests[requestOf{e.owner, e.request}] = slot
	}
}

// latest reports whether a request id lives longer by this entry than by the one that it has. Of two with the same
// stamp it is the one with the later slot, so that a restart chooses the same.
func (m *memory) latest(slot int32) bool {
	e := m.entries.at(slot)
	other, ok := m.requests[requestOf{e.owner, e.request}]
	if !ok {
		return true
	}
	stamp := m.entries.at(other).stamp
	return e.stamp > stamp || e.stamp == stamp && slot > other
}

// link puts an entry into its key's ring and maintains the last one that counts towards the limit.
func (m *memory) link(slot int32) {
	e := m.entries.at(slot)
	h := m.holdings.at(e.owner)
	m.place(h, slot)
	h.count++
	if h.count == m.limit {
		h.last = h.oldest
		return
	}
	if h.count > m.limit && e.stamp >= m.entries.at(h.last).stamp { // it is behind it
		h.last = m.entries.at(h.last).next
	}
}

// place puts an entry behind all entries that are stamped no later.
func (m *memory) place(h *holding, slot int32) {
	e := m.entries.at(slot)
	if h.count == 0 {
		h.oldest, e.prev, e.next = slot, slot, slot
		return
	}
	before := m.entries.at(h.oldest).prev
	for m.entries.at(before).stamp > e.stamp && before != h.oldest {
		before = m.entries.at(before).prev
	}
	if m.entries.at(before).stamp > e.stamp {
		before, h.oldest = m.entries.at(h.oldest).prev, slot
	}
	e.prev, e.next = before, m.entries.at(before).next
	m.entries.at(e.prev).next, m.entries.at(e.next).prev = slot, slot
}

// drop removes the oldest entry of a key from memory.
func (m *memory) drop(owner int32) int32 {
	h := m.holdings.at(owner)
	slot := h.oldest
	e := m.entries.at(slot)
	m.entries.at(e.prev).next, m.entries.at(e.next).prev = e.next, e.prev
	h.oldest = e.next
	h.count--
	m.live--
	delete(m.spent, nonceOf{owner, e.nonce})
	if id := (requestOf{owner, e.request}); m.requests[id] == slot {
		delete(m.requests, id)
	}
	*e = entry{}
	return slot
}

// forget drops the expired nonces of a key, a few at a time. The floor that replaces them is in the file before a
// slot may be used again.
func (m *memory) forget(s *store, owner int32) error {
	h := m.holdings.at(owner)
	n, slot, stamp := int32(0), h.oldest, int64(0)
	for n < min(atOnce, h.count) && m.expired(m.entries.at(slot)) {
		stamp, slot = m.entries.at(slot).stamp, m.entries.at(slot).next
		n++
	}
	if n == 0 {
		return nil
	}
	if err := m.keys.raise(s, owner, stamp); err != nil {
		return fmt.Errorf("forgetting expired nonces: %w", err)
	}
	for range n {
		s.release(m.drop(owner))
	}
	return nil
}

// tidy forgets what has expired in a few slots, going round.
func (m *memory) tidy(s *store) error {
	for look, found := 0, 0; look < looks && found < finds && s.next > 0; look++ {
		m.hand = (m.hand + 1) % s.next
		e := m.entries.at(m.hand)
		if !m.expired(e) {
			continue
		}
		if err := m.forget(s, e.owner); err != nil {
			return err
		}
		found++
	}
	return nil
}

// allocate returns a free slot. If the file cannot grow it looks for expired nonces: once, and again only when one can
// have expired since.
func (m *memory) allocate(s *store) (int32, error) {
	slot, err := s.allocate()
	if err == nil || m.clock <= m.soonest {
		return slot, err
	}
	if err := m.sweep(s); err != nil {
		return 0, err
	}
	return s.allocate()
}

func (m *memory) sweep(s *store) error {
	m.soonest = math.MaxInt64
	for slot := range s.next {
		e := m.entries.at(slot)
		for m.expired(e) {
			if err := m.forget(s, e.owner); err != nil {
				return err
			}
		}
		if e.live {
			m.soonest = min(m.soonest, e.stamp+m.keep)
		}
	}
	return nil
}
