package feed

import (
	"time"

	"sallyport/spa/audit"
)

// kernel is what the kernel refuses in place of the server. While there are watchers it is asked once a second.
type kernel struct {
	counts  func() []audit.Count
	told    map[tallyKey]uint64
	running bool
}

// Kernel sets the function that counts the refusals of the kernel since the start. Call it before Join.
func (h *Feed) Kernel(counts func() []audit.Count) { h.kernel = &kernel{counts: counts} }

// watch begins with the refusals from now on. The caller holds the lock of the feed.
func (k *kernel) watch(h *Feed) {
	if k == nil || k.running {
		return
	}
	k.running, k.told = true, make(map[tallyKey]uint64)
	for _, c := range k.counts() {
		k.told[tallyKey{"", c.Reason, c.Verdict}] = c.Packets
	}
	time.AfterFunc(refusedGap, func() { k.tell(h) })
}

// tell reports what was refused since, as noise, until there are no watchers.
func (k *kernel) tell(h *Feed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) == 0 {
		k.running = false
		return
	}
	for _, c := range k.counts() {
		key := tallyKey{"", c.Reason, c.Verdict}
		if n := c.Packets - k.told[key]; n > 0 {
			h.add(key, time.Now(), n)
			k.told[key] = c.Packets
		}
	}
	time.AfterFunc(refusedGap, func() { k.tell(h) })
}
