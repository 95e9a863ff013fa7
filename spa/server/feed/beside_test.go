package feed

import (
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/spa/audit"
	"sallyport/spa/replay"
)

// TestFeedBeside: all events for watchers, and all actions of watchers, run concurrently. It is for the race detector.
func TestFeedBeside(t *testing.T) {
	h := New()
	w, _ := h.Join()
	defer h.Leave(w)
	now := time.Now()
	var gs []firewall.Grant
	for n := range 100 {
		gs = append(gs, firewall.Grant{Client: "alice", Service: strconv.Itoa(n), Source: netip.MustParseAddr("192.0.2.2"),
			Until: now.Add(time.Second)})
	}
	var wg sync.WaitGroup
	for _, do := range []func(){
		func() { other, _ := h.Join(); h.Leave(other) },
		func() { h.Tell(audit.Event{Verdict: audit.Unspent, Client: "alice", Err: replay.ErrSpent}) },
		func() { h.Expect(gs) }, func() { h.Closed(gs) }, func() { h.Revoked(gs, "", now) },
		func() { h.TellEnded(now.Add(time.Hour)) }, func() { h.Missed(w) }, h.flush,
	} {
		wg.Go(func() {
			for range 100 {
				do()
			}
		})
	}
	wg.Wait()
}
