package server

import (
	"sync"
	"sync/atomic"
	"time"

	"sallyport/spa/audit"
	"sallyport/spa/server/control"
)

// How much is kept for a watcher who does not read, and how often packets that are not spent are told of.
const (
	queued     = 512
	refusedGap = time.Second
	noiseGap   = 10 * time.Second
	// maxWatchers leaves places on the socket for who has something to say: see control.
	maxWatchers = 24
)

// hub tells watchers what is decided. Where nobody watches it costs a look at a number. It waits for
// nobody: what a watcher has no room for is counted, and said.
type hub struct {
	active atomic.Int32 // watchers

	mu       sync.Mutex
	watchers map[*watcher]bool
	tallies  map[tallyKey]*tally // of packets that are not spent
	timer    *time.Timer         // the next look at them; nil: there are none
	noise    time.Time           // when noise was told of
	ends     *ends
}

// watcher is one reader of decisions.
type watcher struct {
	lines  chan told
	missed uint64 // since the last line that had room; guarded by the hub
}

// told is a decision, and how many before it there was no room for.
type told struct {
	missed   uint64
	decision control.Decision
}

// tallyKey is what packets that are not spent are counted by: there are as many as clients and reasons.
type tallyKey struct {
	client, reason string
	verdict        audit.Verdict
}

type tally struct {
	packets uint64 // that were not told of yet
	last    control.Decision
}

func newHub() *hub {
	return &hub{watchers: make(map[*watcher]bool), tallies: make(map[tallyKey]*tally), ends: newEnds()}
}

// join returns a new watcher, unless there are too many; leave is to be called with it.
func (h *hub) join() (w *watcher, ok bool) {
	w = &watcher{lines: make(chan told, queued)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) >= maxWatchers {
		return nil, false
	}
	h.watchers[w] = true
	h.active.Store(int32(len(h.watchers)))
	return w, true
}

// leave ends a watcher. Without any the hub keeps nothing, and a timer that still runs is the last.
func (h *hub) leave(w *watcher) {
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

// watched reports whether anybody watches.
func (h *hub) watched() bool { return h.active.Load() > 0 }

// tell tells of what became of a packet: each that was spent; of others the first, and then at most
// one line a second for each client and reason; of noise how much there was, now and then.
func (h *hub) tell(e audit.Event) {
	if !h.watched() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !e.Verdict.Spent() {
		h.tally(e)
		return
	}
	h.spread(decisionOf(e))
	if e.Verdict == audit.Granted {
		h.ends.expect(grantsOf(e))
	}
}

// spread hands a decision to all watchers. The caller holds the lock.
func (h *hub) spread(d control.Decision) {
	for w := range h.watchers {
		select {
		case w.lines <- told{w.missed, d}:
			w.missed = 0
		default:
			w.missed++
		}
	}
}

// rest returns how many decisions a watcher who has read everything was not shown.
func (h *hub) rest(w *watcher) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	missed := w.missed
	w.missed = 0
	return missed
}

func (h *hub) tally(e audit.Event) {
	key := tallyKey{e.Client, e.Reason(), e.Verdict}
	t, ok := h.tallies[key]
	if !ok {
		t = &tally{}
		h.tallies[key] = t
		h.arm()
	}
	if e.Client == "" { // noise: nothing of the packet is worth a look
		t.last.Time, t.last.Verdict, t.last.Reason = e.Time, e.Verdict.String(), key.reason
		t.packets++
		return
	}
	if !ok {
		h.spread(decisionOf(e))
		return
	}
	t.last = decisionOf(e)
	t.packets++
}

// arm starts the timer, unless it runs.
func (h *hub) arm() {
	if h.timer == nil {
		h.timer = time.AfterFunc(refusedGap, h.flush)
	}
}

// flush tells of what was tallied, and forgets what has not come again.
func (h *hub) flush() {
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
