package feed

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/replay"
)

// told returns the decisions that a watcher received since the last call, abbreviated.
func toldOf(w *Watcher) []string {
	var list []string
	for len(w.Lines) > 0 {
		d := (<-w.Lines).Decision
		list = append(list, fmt.Sprintf("%s %s %d", d.Verdict, d.Client, d.Packets))
	}
	slices.Sort(list)
	return list
}

// given is the event of a grant to alice for a minute.
func given() audit.Event {
	client := &keys.Client{Name: "alice"}
	return audit.Event{
		Time: time.Now(), Verdict: audit.Granted, Client: client.Name, From: netip.MustParseAddrPort("192.0.2.2:1"),
		Knock:   &spa.Knock{Request: spa.Request{Services: []service.Service{{Name: "ssh"}}}, Client: client},
		Receipt: spa.Receipt{Status: spa.Granted, Time: time.Now(), Services: []spa.Granting{{For: time.Minute}}},
	}
}

// again is the event of a replayed packet of alice's, junk that of a packet that is no client's.
func again() audit.Event {
	return audit.Event{Time: time.Now(), Verdict: audit.Unspent, Client: "alice", Err: replay.ErrSpent}
}

func junk() audit.Event {
	return audit.Event{Time: time.Now(), Verdict: audit.Unopened, Err: spa.ErrGate}
}

// TestToldNowAndThen: watchers see the first refused packet at once and then a count every second; noise is counted now
// and then. A feed without new packets does nothing.
func TestToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		w, _ := h.Join()
		defer h.Leave(w)
		want := func(after string, list ...string) {
			t.Helper()
			synctest.Wait()
			if got := toldOf(w); !slices.Equal(got, list) {
				t.Errorf("%s: got %q, want %q", after, got, list)
			}
		}
		h.Tell(given())
		want("the packet", "granted alice 0")
		for range 4 {
			h.Tell(again())
			h.Tell(junk())
		}
		want("four copies, and noise", "unspent alice 0")
		time.Sleep(refusedGap)
		want("a second", "unopened  4", "unspent alice 3")
		h.Tell(junk())
		time.Sleep(refusedGap)
		want("another, with noise")
		h.Tell(again())
		want("a copy later", "unspent alice 0")
		time.Sleep(noiseGap)
		want("a while", "unopened  1")
		time.Sleep(noiseGap)
		want("nothing")
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.tallies) != 0 || h.timer != nil {
			t.Errorf("without new packets: %d tallies, a timer: %v", len(h.tallies), h.timer != nil)
		}
	})
}

// TestToldOnceASecond: once a second per client and reason, whatever else there is to report; noise is reported in
// time.
func TestToldOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		w, _ := h.Join()
		defer h.Leave(w)
		after := func(d time.Duration, list ...string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := toldOf(w); !slices.Equal(got, list) {
				t.Errorf("got %q, want %q", got, list)
			}
		}
		h.Tell(given())
		for range 2 {
			h.Tell(again())
		}
		after(refusedGap/2, "granted alice 0", "unspent alice 0")
		h.Tell(junk())
		after(refusedGap/2, "unopened  1", "unspent alice 1")
		h.Tell(again())
		after(refusedGap * 3 / 4)
		after(refusedGap/4, "unspent alice 1")
		for range noiseGap/refusedGap - 2 {
			h.Tell(again())
			h.Tell(junk())
			after(refusedGap, "unspent alice 1")
		}
		h.Tell(junk())
		after(refusedGap, "unopened  9")
	})
}

// TestEndIsTold: watchers see when a grant expires, including grants from before they connected.
func TestEndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- h.TellEnds(ctx, time.Now) }()
		e := given()
		h.Tell(e)
		w, _ := h.Join()
		defer h.Leave(w)
		h.Expect(GrantsOf(e))
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		if got := toldOf(w); len(got) != 0 {
			t.Errorf("before its end: %q", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := toldOf(w); !slices.Equal(got, []string{"ended alice 0"}) {
			t.Errorf("after its end: %q", got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestOneWatcherLeaves: the other still receives decisions.
func TestOneWatcherLeaves(t *testing.T) {
	h := New()
	leaving, _ := h.Join()
	w, _ := h.Join()
	defer h.Leave(w)
	h.Tell(given())
	h.Leave(leaving)
	h.TellEnded(time.Now().Add(time.Hour))
	if got := toldOf(w); !slices.Equal(got, []string{"ended alice 0", "granted alice 0"}) {
		t.Errorf("got %q", got)
	}
}

// TestNobodyWatches: without watchers, nothing is kept and no timer runs.
func TestNobodyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		w, _ := h.Join()
		h.Tell(given())
		h.Tell(junk())
		h.mu.Lock()
		if len(h.tallies) != 1 || h.timer == nil || len(h.ends.at) != 1 {
			t.Errorf("while there is a watcher: %d tallies, %d ends", len(h.tallies), len(h.ends.at))
		}
		h.mu.Unlock()
		h.Leave(w)
		if h.Watched() {
			t.Error("it reports a watcher")
		}
		h.Tell(given())
		h.Tell(junk())
		time.Sleep(refusedGap)
		synctest.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.tallies) != 0 || h.timer != nil || len(h.ends.at) != 0 || len(h.ends.due) != 0 {
			t.Errorf("without watchers: %d tallies, %d ends", len(h.tallies), len(h.ends.at))
		}
	})
}

// TestMissedComesLast: the number of lost decisions is reported after those still queued, which are older.
func TestMissedComesLast(t *testing.T) {
	h := New()
	w, _ := h.Join()
	defer h.Leave(w)
	for range Queued + 3 {
		h.Tell(given())
	}
	if missed := h.Missed(w); missed != 0 {
		t.Errorf("%d missed, with %d to read before", missed, len(w.Lines))
	}
	toldOf(w)
	if missed := h.Missed(w); missed != 3 {
		t.Errorf("%d missed, want 3", missed)
	}
}
