package replay

import (
	"fmt"
	"time"
)

// Retune changes window and limit while nonces are remembered, and forgets none. A longer window makes nothing fresh
// again: packets that were too old stay refused, because a request whose first packet is forgotten could act again
// through a later one that was held back. On an error nothing is changed.
func (j *Journal) Retune(window time.Duration, liveNonces int, now time.Time) error {
	if window <= 0 || liveNonces < 1 || liveNonces > maxLive {
		return fmt.Errorf("window of %v and %d live nonces", window, liveNonces)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errClosed
	}
	if int64(window) != j.memory.window {
		if err := j.store.rewindow(int64(window), now.UnixNano()-j.memory.window); err != nil {
			return err
		}
	}
	j.memory.retune(Config{Window: window, LiveNonces: liveNonces})
	return nil
}

// rewindow writes another window into the header and, if it is longer than the previous one, a floor at what was
// stale before. Without a previous one nothing has been admitted.
func (s *store) rewindow(window, stale int64) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	h := s.header
	if h.Window > 0 && window > h.Window {
		h.Floor = max(h.Floor, stale)
	}
	h.Window = window
	if err := s.commit(h); err != nil {
		return err
	}
	s.floor = h.Floor
	return nil
}

// retune recomputes what depends on the window and the limit.
func (m *memory) retune(c Config) {
	next := newMemory(c)
	m.window, m.keep, m.limit, m.most = next.window, next.keep, next.limit, next.most
	m.soonest = m.clock // a look will tell
	for _, owner := range m.keys.index {
		m.relimit(m.holdings.at(owner))
	}
}

// relimit finds the last nonce of a key that counts towards the limit, if there are that many.
func (m *memory) relimit(h *holding) {
	h.last = h.oldest
	for range h.count - m.limit {
		h.last = m.entries.at(h.last).next
	}
}
