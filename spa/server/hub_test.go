package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
)

// toldTo are the decisions that a watcher has been told of since it was last asked, in short.
func toldTo(w *watcher) []string {
	var list []string
	for len(w.lines) > 0 {
		d := (<-w.lines).decision
		list = append(list, fmt.Sprintf("%s %s %d", d.Verdict, d.Client, d.Packets))
	}
	slices.Sort(list)
	return list
}

// TestToldNowAndThen: of packets that are not spent watchers are told the first at once, then once a second how
// many; of noise now and then how much. What has come to rest costs nothing more.
func TestToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sender := newLine(t)
		w, _ := s.hub.join()
		defer s.hub.leave(w)
		want := func(after string, list ...string) {
			t.Helper()
			synctest.Wait()
			if got := toldTo(w); !slices.Equal(got, list) {
				t.Errorf("%s: told of %q, want %q", after, got, list)
			}
		}
		good := arriving(sealed(t, sender))
		noise := func() { s.take(context.Background(), arriving(make([]byte, 200))) }
		s.take(context.Background(), good)
		want("the packet", "granted alice 0")
		for range 4 {
			s.take(context.Background(), good)
			noise()
		}
		want("four copies, and noise", "unspent alice 0")
		time.Sleep(refusedGap)
		want("a second", "unopened  4", "unspent alice 3")
		noise()
		time.Sleep(refusedGap)
		want("another, with noise")
		s.take(context.Background(), good)
		want("a copy later", "unspent alice 0")
		time.Sleep(noiseGap)
		want("a while", "unopened  1")
		time.Sleep(noiseGap)
		want("rest")
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		if len(s.hub.tallies) != 0 || s.hub.timer != nil {
			t.Errorf("at rest: %d tallies, a timer: %v", len(s.hub.tallies), s.hub.timer != nil)
		}
	})
}

// TestToldOnceASecond: of each client and reason, whatever else there is to tell of; and noise is told of in time.
func TestToldOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sender := newLine(t)
		w, _ := s.hub.join()
		defer s.hub.leave(w)
		good := arriving(sealed(t, sender))
		take := func(data []byte) { s.take(context.Background(), arriving(data)) }
		noise := make([]byte, 200)
		after := func(d time.Duration, list ...string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := toldTo(w); !slices.Equal(got, list) {
				t.Errorf("told of %q, want %q", got, list)
			}
		}
		for range 3 {
			take(good.Data)
		}
		after(refusedGap/2, "granted alice 0", "unspent alice 0")
		take(noise)
		after(refusedGap/2, "unopened  1", "unspent alice 1")
		take(good.Data)
		after(refusedGap * 3 / 4)
		after(refusedGap/4, "unspent alice 1")
		for range noiseGap/refusedGap - 2 {
			take(good.Data)
			take(noise)
			after(refusedGap, "unspent alice 1")
		}
		take(noise)
		after(refusedGap, "unopened  9")
	})
}

// TestEndIsTold: watchers are told when a grant ends by itself, also one that was given before they came.
func TestEndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sender := newLine(t)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.tellEnds(ctx) }()
		request := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now(), For: time.Minute,
			Services: []service.Service{{Name: "ssh"}}}
		packet, err := spa.Seal(request, sender)
		if err != nil {
			t.Fatal(err)
		}
		s.take(context.Background(), arriving(packet))
		w, _ := s.hub.join()
		defer s.hub.leave(w)
		s.hub.expect(s.firewall.Grants(time.Now()))
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		if got := toldTo(w); len(got) != 0 {
			t.Errorf("before its end: %q", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := toldTo(w); !slices.Equal(got, []string{"ended alice 0"}) {
			t.Errorf("after its end: %q", got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestOneWatcherLeaves: the other is told on.
func TestOneWatcherLeaves(t *testing.T) {
	s, sender := newLine(t)
	leaving, _ := s.hub.join()
	w, _ := s.hub.join()
	defer s.hub.leave(w)
	s.take(context.Background(), arriving(sealed(t, sender)))
	s.hub.leave(leaving)
	s.hub.tellEnded(time.Now().Add(time.Hour))
	if got := toldTo(w); !slices.Equal(got, []string{"ended alice 0", "granted alice 0"}) {
		t.Errorf("told of %q", got)
	}
}
