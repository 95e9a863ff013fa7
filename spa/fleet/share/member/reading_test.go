package member_test

import (
	"testing"
	"testing/synctest"
	"time"

	"sallyport/spa/fleet/share"
)

// lose makes the store lose the session. The member makes a new one, and reads.
func (o *outlet) lose() {
	o.session.Store(20)
	o.revision.Store(21)
	time.Sleep(share.SessionEvery)
	synctest.Wait()
}

// TestReadBeforeSession: what was read before the store lost the session is not enough: others may have answered a
// close in between.
func TestReadBeforeSession(t *testing.T) {
	scripted(t, nil, func(h *host) {
		h.line = make(chan struct{})
		floor := func(n byte) share.Message {
			return share.Message{Kind: share.Event, Key: place("f", n), Value: sealed(place("f", n), "floor"),
				Revision: 9 + int64(n)}
		}
		o := h.outlet(func(o *outlet) { o.has = []share.Message{floor(1)} })
		o.has = append(o.has, floor(2))
		o.lose()
		for range 2 { // the first, and again as part of the second reading
			h.lets()
			if synctest.Wait(); h.m.Alive() {
				t.Errorf("alive, with one of 2 floors in force: %q", h.raised)
			}
		}
		h.lets()
		if synctest.Wait(); !h.m.Alive() || len(h.raised) != 3 {
			t.Errorf("alive: %t, with all %d floors in force", h.m.Alive(), len(h.raised))
		}
	})
}

// TestEarlierReading: an agent's late answer to an earlier reading is not taken for one to the last.
func TestEarlierReading(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(func(o *outlet) { o.mute.Store(true) })
		first := o.seq
		o.lose()
		o.Write(share.Message{Kind: share.Begin, Seq: first, Revision: 10}, share.Message{Kind: share.End, Seq: first})
		if synctest.Wait(); h.m.Alive() || !h.m.Status().Connected {
			t.Errorf("%+v", h.m.Status())
		}
		o.begin()
		if synctest.Wait(); !h.m.Alive() {
			t.Error("not alive when all was read")
		}
	})
}

// TestSlowSessions: a member does not rely on a session whose answer comes after it has asked again.
func TestSlowSessions(t *testing.T) {
	scripted(t, nil, func(h *host) {
		h.outlet(func(o *outlet) { o.slow.Store(int64(2*share.SessionEvery + time.Second)) })
		for range 60 {
			time.Sleep(500 * time.Millisecond)
			if synctest.Wait(); h.m.Alive() {
				t.Fatal("alive")
			}
		}
	})
}

// TestInstallsAgain: what the server may have left out, because the session had ended, is given to it again.
func TestInstallsAgain(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		h.line = make(chan struct{})
		outcome := sealed(place("o", 1), "outcome")
		o.event(place("o", 1), outcome)
		o.silent.Store(true)
		time.Sleep(share.SessionUse)
		h.lets()
		o.after = []share.Message{{Kind: share.Event, Key: place("o", 1), Value: outcome, Revision: o.revision.Load()}}
		o.silent.Store(false)
		time.Sleep(share.SessionEvery)
		h.lets()
		if synctest.Wait(); len(h.installed) != 2 {
			t.Errorf("given %d times", len(h.installed))
		}
	})
}
