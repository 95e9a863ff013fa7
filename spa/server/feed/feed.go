// Package feed reports a server's decisions to watchers as it decides: to spa-server watch, above all. It never blocks
// the line: decisions that a watcher is too slow for are counted.
package feed

import (
	"sync"
	"sync/atomic"
	"time"

	"sallyport/spa/audit"
	"sallyport/spa/server/control"
)

const (
	// Queued is how many decisions are kept for a watcher that does not read.
	Queued = 512
	// Packets that were not spent are counted, and reported no more often than this.
	refusedGap = time.Second
	noiseGap   = 10 * time.Second
	// MaxWatchers leaves room on the control socket for other commands.
	MaxWatchers = 24
)

// A Feed reports decisions to watchers. With no watchers it costs one atomic load. It never blocks: a slow watcher
// loses decisions and learns how many.
type Feed struct {
	active atomic.Int32 // watchers

	mu       sync.Mutex
	watchers map[*Watcher]bool
	tallies  map[tallyKey]*tally // of packets that are not spent
	timer    *time.Timer         // reports them next; nil: there are none
	noise    time.Time           // when noise was last reported
	kernel   *kernel             // nil: it refuses nothing
	ends     *ends
}

// A Watcher reads decisions from Lines.
type Watcher struct {
	Lines  chan Told
	missed uint64 // since the last line that had room; guarded by the Feed's lock
}

// Told is a decision, and how many the watcher lost before it.
type Told struct {
	Missed   uint64
	Decision control.Decision
}

// tallyKey is what unspent packets are counted by.
type tallyKey struct {
	client, reason string
	verdict        audit.Verdict
}

type tally struct {
	packets uint64 // not reported yet
	last    control.Decision
}

// New returns a feed without watchers.
func New() *Feed {
	return &Feed{watchers: make(map[*Watcher]bool), tallies: make(map[tallyKey]*tally), ends: newEnds()}
}

// Join returns a new watcher; false if there are too many. Its caller must call Leave.
func (h *Feed) Join() (w *Watcher, ok bool) {
	w = &Watcher{Lines: make(chan Told, Queued)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) >= MaxWatchers {
		return nil, false
	}
	h.watchers[w] = true
	h.active.Store(int32(len(h.watchers)))
	h.kernel.watch(h)
	return w, true
}

// Leave ends a watcher. Without watchers the feed keeps nothing, and a timer that still runs is the last.
func (h *Feed) Leave(w *Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
	h.active.Store(int32(len(h.watchers)))
	if len(h.watchers) > 0 {
		return
	}
	clear(h.tallies)
	h.ends.clear()
}

// Watched reports whether there are watchers.
func (h *Feed) Watched() bool { return h.Watching() > 0 }

// Watching returns how many watchers there are.
func (h *Feed) Watching() int { return int(h.active.Load()) }

// Tell reports the result of a packet to watchers. Of unspent packets they get the first, and then a count once a
// second for each client and reason; of noise a count every ten seconds.
func (h *Feed) Tell(e audit.Event) {
	if !h.Watched() || e.Verdict == audit.Rechecked {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !e.Verdict.Spent() {
		h.tally(e)
		return
	}
	h.spread(DecisionOf(e))
	if e.Verdict == audit.Granted {
		h.ends.expect(GrantsOf(e))
	}
}

// spread hands a decision to all watchers. The caller holds the lock.
func (h *Feed) spread(d control.Decision) {
	for w := range h.watchers {
		select {
		case w.Lines <- Told{w.missed, d}:
			w.missed = 0
		default:
			w.missed++
		}
	}
}

// Missed returns how many decisions a watcher that has read everything lost after that. It is zero while there is more
// to read: what is queued came before.
func (h *Feed) Missed(w *Watcher) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(w.Lines) > 0 {
		return 0
	}
	missed := w.missed
	w.missed = 0
	return missed
}

func (h *Feed) tally(e audit.Event) {
	key := tallyKey{e.Client, e.Reason(), e.Verdict}
	if e.Client == "" { // noise: nothing in the packet matters
		h.add(key, e.Time, 1)
		return
	}
	t, known := h.tallyOf(key)
	if !known {
		h.spread(DecisionOf(e))
		return
	}
	t.last = DecisionOf(e)
	t.packets++
}

// tallyOf returns the tally of a key, and whether there was one.
func (h *Feed) tallyOf(key tallyKey) (t *tally, known bool) {
	if t, known = h.tallies[key]; !known {
		t = &tally{}
		h.tallies[key] = t
		h.arm()
	}
	return t, known
}

// add counts noise.
func (h *Feed) add(key tallyKey, now time.Time, packets uint64) {
	t, _ := h.tallyOf(key)
	t.last.Time, t.last.Verdict, t.last.Reason = now, key.verdict.String(), key.reason
	t.packets += packets
}

// arm starts the timer, unless it runs.
func (h *Feed) arm() {
	if h.timer == nil {
		h.timer = time.AfterFunc(refusedGap, h.flush)
	}
}

// flush reports the tallies, and forgets those that were not counted again.
func (h *Feed) flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = nil
	noisy := time.Since(h.noise) >= noiseGap
	for key, t := range h.tallies {
		switch {
		case key.client == "" && !noisy:
			continue
		case t.packets == 0:
			delete(h.tallies, key)
			continue
		case key.client == "":
			h.noise = time.Now()
		}
		t.last.Packets = t.packets
		h.spread(t.last)
		*t = tally{}
	}
	if len(h.tallies) > 0 {
		h.arm()
	}
}
