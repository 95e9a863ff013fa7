package member_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
)

// TestAnswers: what the store answers is what the server decides.
func TestAnswers(t *testing.T) {
	id := shareKey.RequestName(1, [16]byte{1})
	for _, c := range []struct {
		name   string
		answer share.Message
		want   string
	}{
		{"won", share.Message{Kind: share.Won}, "1act "},
		{"spent", share.Message{Kind: share.Spent}, ""},
		{"failed", share.Message{Kind: share.Failed}, ""},
		{"repeat", share.Message{Kind: share.Repeat, Token: share.Token{9}, Value: sealed("o/"+id.String(), "done")},
			"1repeat "},
		{"repeat without outcome", share.Message{Kind: share.Repeat, Token: share.Token{9}}, ""},
		{"repeat with an outcome of another id", share.Message{Kind: share.Repeat, Token: share.Token{9},
			Value: sealed(place("o", 3), "done")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			scripted(t, nil, func(h *host) {
				o := h.outlet(nil)
				h.spend(1, 1, 1)
				o.answer(o.next(share.Spend), c.answer)
				if got := h.hows(); got != c.want {
					t.Errorf("decided %q, want %q", got, c.want)
				}
				if c.want == "1repeat " && h.decided[0].outcome != "done" {
					t.Errorf("got the outcome %q", h.decided[0].outcome)
				}
				if h.spend(1, 2, 1); h.m.Status().Waiting != 1 {
					t.Error("the next packet of the key is not on its way")
				}
			})
		})
	}
}

// TestOrderOfKey: packets of one key are decided in their order, one after the other; those of others do not wait.
func TestOrderOfKey(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		for n := range byte(10) {
			if took := h.spend(1, n, n); took != (n < 1+member.MaxOfKey) {
				t.Errorf("packet %d: taken: %t", n, took)
			}
		}
		if h.spend(1, 100, 0) {
			t.Error("a second packet with a request id that is on its way is taken")
		}
		h.spend(2, 20, 0)
		first, other := o.next(share.Spend), o.next(share.Spend)
		o.none(share.Spend)
		o.answer(other, share.Message{Kind: share.Won})
		for range 1 + member.MaxOfKey {
			o.answer(first, share.Message{Kind: share.Won})
			if h.m.Status().Waiting > 0 {
				first = o.next(share.Spend)
			}
		}
		want := "20act 0act 1act 2act 3act 4act 5act 6act 7act 8act "
		if got := h.hows(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestManyPackets: neither an agent that reads nothing nor a store that does not answer holds up the line, or fills the
// memory.
func TestManyPackets(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		began, taken := time.Now(), 0
		for n := range 2 * member.MaxSpends {
			if h.spend(keys.ID(1+n), byte(n), byte(n)) {
				taken++
			}
		}
		if taken != member.MaxSpends || !time.Now().Equal(began) {
			t.Errorf("%d packets are taken in %v, want %d at once", taken, time.Since(began), member.MaxSpends)
		}
		time.Sleep(share.AnswerWithin)
		synctest.Wait()
		s := h.m.Status()
		if h.hows() != "" || s.Waiting != 0 || s.Counts.Unanswered != member.MaxSpends ||
			s.Counts.Dropped != member.MaxSpends {
			t.Errorf("after the time for an answer: %+v", s)
		}
		if !h.spend(1, 1, 9) {
			t.Error("a packet after that is not taken")
		}
		o.none("")
	})
}

// TestLateAnswer: an answer to an attempt that was given up does nothing. A retry acts instead, once.
func TestLateAnswer(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		h.spend(1, 1, 1)
		first := o.next(share.Spend)
		time.Sleep(share.AnswerWithin)
		synctest.Wait()
		o.answer(first, share.Message{Kind: share.Won})
		if got := h.hows(); got != "" {
			t.Errorf("a late answer decides: %s", got)
		}
		for n := byte(2); n < 5; n++ {
			h.spend(1, n, 1)
			o.answer(o.next(share.Spend), share.Message{Kind: share.Repeat, Token: first.Token})
		}
		if got := h.hows(); got != "2act " {
			t.Errorf("retries: decided %q, want one act", got)
		}
		h.m.GaveUp(h.decided[0].attempt)
		h.spend(1, 6, 1)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Repeat, Token: first.Token})
		if got := h.hows(); got != "2act 6act " {
			t.Errorf("a retry after the server gave up: decided %q", got)
		}
	})
}

// TestGaveUpRepeat: giving up a repeat lets nobody act.
func TestGaveUpRepeat(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		h.spend(1, 1, 1)
		m := o.next(share.Spend)
		o.answer(m, share.Message{Kind: share.Repeat, Token: share.Token{9}, Value: sealed("o/"+m.ID.String(), "x")})
		h.m.GaveUp(h.decided[0].attempt)
		h.m.Settled(h.decided[0].attempt, []byte("y"), time.Now())
		o.none(share.Settle)
		h.spend(1, 2, 1)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Repeat, Token: m.Token})
		if got := h.hows(); got != "1repeat " {
			t.Errorf("decided %q", got)
		}
	})
}

// TestWaitsForSession: a packet that comes before the session waits for it, as long as it would for an answer.
func TestWaitsForSession(t *testing.T) {
	scripted(t, nil, func(h *host) {
		h.spend(1, 1, 1)
		time.Sleep(share.AnswerWithin / 2)
		o := h.outlet(nil)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
		if got := h.hows(); got != "1act " {
			t.Errorf("decided %q", got)
		}
	})
}

// TestLocal: a member that may decide alone does so when the store has not answered, and not before.
func TestLocal(t *testing.T) {
	local := func(c *member.Config) { c.Local = true }
	scripted(t, local, func(h *host) {
		h.spend(1, 1, 1)
		time.Sleep(share.AnswerWithin)
		if got := h.hows(); got != "1alone " || h.decided[0].after != share.AnswerWithin {
			t.Errorf("without an agent: decided %q", got)
		}
		o := h.outlet(nil)
		h.spend(1, 2, 2)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Failed})
		h.spend(1, 3, 3)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
		if got := h.hows(); got != "1alone 2alone 3act " {
			t.Errorf("decided %q", got)
		}
		if c := h.m.Status().Counts; c.Alone != 2 || c.Unanswered != 2 {
			t.Errorf("counted %+v", c)
		}
	})
}

// TestFence: a member is alive for a part of its session's time, from when it asked. Late answers are old.
func TestFence(t *testing.T) {
	scripted(t, nil, func(h *host) {
		began := time.Now()
		o := h.outlet(func(o *outlet) { o.slow.Store(int64(time.Second)) })
		time.Sleep(time.Second)
		if synctest.Wait(); !h.m.Alive() {
			t.Error("not alive when the answer comes")
		}
		o.slow.Store(0)
		o.silent.Store(true)
		time.Sleep(share.SessionUse - time.Second - time.Millisecond)
		if synctest.Wait(); !h.m.Alive() {
			t.Errorf("not alive after %v", time.Since(began))
		}
		time.Sleep(time.Millisecond)
		if h.m.Alive() {
			t.Errorf("alive after %v", time.Since(began))
		}
		h.spend(1, 1, 1)
		o.none(share.Spend)
		reads := o.reads
		o.silent.Store(false)
		time.Sleep(share.SessionEvery)
		if synctest.Wait(); !h.m.Alive() || o.reads != reads+1 || h.m.Status().Counts.Lapses != 1 {
			t.Errorf("back: read %d times more, %+v", o.reads-reads, h.m.Status())
		}
	})
}

// TestSessionMadeAgain: if the store lost the session, others may not have waited: the floors are read again first.
func TestSessionMadeAgain(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		reads := o.reads
		time.Sleep(5 * share.SessionEvery)
		if synctest.Wait(); o.reads != reads {
			t.Errorf("read %d times without a reason", o.reads-reads)
		}
		o.session.Store(20)
		o.revision.Store(19) // an agent that has not read after it made the session
		time.Sleep(share.SessionEvery)
		if synctest.Wait(); h.m.Alive() {
			t.Error("alive with floors from before the session")
		}
	})
}

// TestRefused: a second gateway of the same name takes no part, and neither does a first that lost its session to it.
func TestRefused(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(func(o *outlet) { o.refusing.Store(true) })
		for range 2 {
			if s := h.m.Status(); s.Alive || !s.Refused {
				t.Errorf("refused: %+v", s)
			}
			o.refusing.Store(false)
			time.Sleep(share.SessionEvery)
			if synctest.Wait(); !h.m.Alive() || h.m.Status().Refused {
				t.Errorf("not refused any more: %+v", h.m.Status())
			}
			o.refusing.Store(true)
			time.Sleep(share.SessionEvery)
			synctest.Wait()
		}
	})
}

// TestOwnAreNotGivenBack: what this member wrote does not come back to its server. Outcomes of others do once, and
// their floors with each reading.
func TestOwnAreNotGivenBack(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(func(o *outlet) {
			o.has = []share.Message{{Kind: share.Event, Key: place("f", 1), Value: sealed(place("f", 1), "first floor"),
				Revision: 7}}
			o.after = []share.Message{{Kind: share.Event, Key: place("o", 1), Value: sealed(place("o", 1), "first"),
				Revision: 6}}
		})
		h.spend(1, 1, 1)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
		h.hows()
		h.m.Settled(h.decided[0].attempt, []byte("mine"), time.Now())
		m := o.next(share.Settle)
		o.answer(m, share.Message{Kind: share.Done})
		o.event("o/"+m.ID.String(), m.Value)
		h.m.End([]byte("my floor"), keep, func(bool) {})
		m = o.next(share.PutFloor)
		o.event("f/"+m.ID.String(), m.Value)
		o.event(place("o", 2), sealed(place("o", 2), "second"))
		o.event(place("f", 2), sealed(place("f", 2), "second floor"))
		o.has, o.after = append(o.has, share.Message{Kind: share.Event, Key: place("f", 2),
			Value: sealed(place("f", 2), "second floor"), Revision: o.revision.Load()}), append(o.after, share.Message{
			Kind: share.Event, Key: place("o", 2), Value: sealed(place("o", 2), "second"), Revision: o.revision.Load() - 1})
		o.begin() // a watch that broke
		synctest.Wait()
		if !slices.Equal(h.installed, []string{"first", "second"}) ||
			!slices.Equal(h.raised, []string{"first floor", "second floor", "first floor", "second floor"}) {
			t.Errorf("installed %q, raised %q", h.installed, h.raised)
		}
	})
}

// TestUnsealed: what no member wrote is counted and ignored. A floor is acknowledged nevertheless.
func TestUnsealed(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		o.answer(o.next(share.Ack), share.Message{Kind: share.Done})
		o.event(place("o", 1), []byte("forged"))
		o.event(place("o", 2), sealed(place("o", 1), "moved"))
		o.event(place("f", 1), []byte("forged"))
		if s := h.m.Status(); len(h.installed)+len(h.raised) != 0 || s.Counts.Unsealed != 3 {
			t.Errorf("installed %q, raised %q, %+v", h.installed, h.raised, s.Counts)
		}
		if ack := o.next(share.Ack); ack.Revision != o.revision.Load() {
			t.Errorf("acknowledged %d, want %d", ack.Revision, o.revision.Load())
		}
	})
}

// TestUnraised: a floor that cannot be put into force is not acknowledged, and the member decides nothing until it can.
// It has no session for long enough that the others can answer a close.
func TestUnraised(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		o.answer(o.next(share.Ack), share.Message{Kind: share.Done})
		h.failing = true
		o.event(place("f", 1), sealed(place("f", 1), "floor"))
		if o.none(share.Ack); h.m.Alive() || h.m.Status().Connected {
			t.Errorf("%+v", h.m.Status())
		}
		h.failing = false
		o = h.outlet(func(o *outlet) {
			o.revision.Store(11)
			o.has = []share.Message{{Kind: share.Event, Key: place("f", 1), Value: sealed(place("f", 1), "floor"),
				Revision: 11}}
		})
		time.Sleep(share.SessionTTL + member.EndWithin - time.Second)
		if n := o.asked.Load(); n != 0 {
			t.Errorf("it has asked for a session %d times", n)
		}
		time.Sleep(2 * time.Second)
		if ack := o.next(share.Ack); !h.m.Alive() || len(h.raised) != 1 || ack.Revision != 11 {
			t.Errorf("once it can: raised %q, acknowledged %d", h.raised, ack.Revision)
		}
	})
}

// TestRestoredStore: after a store was set back, floors are put into force again, whatever their revision.
func TestRestoredStore(t *testing.T) {
	scripted(t, nil, func(h *host) {
		h.outlet(nil)
		o := h.outlet(func(o *outlet) {
			o.session.Store(2)
			o.revision.Store(4)
			o.has = []share.Message{{Kind: share.Event, Key: place("f", 1), Value: sealed(place("f", 1), "floor"),
				Revision: 3}}
		})
		if o.none(share.Spend); !h.m.Alive() || len(h.raised) != 1 {
			t.Errorf("raised %q, %+v", h.raised, h.m.Status())
		}
	})
}

// TestHostileAgent: an agent that breaks the rules is left, and the next one is used.
func TestHostileAgent(t *testing.T) {
	begin := share.Message{Kind: share.Begin, Revision: 12}
	peer := func(revision int64) share.Message {
		return share.Message{Kind: share.Event, Key: "s/gw2", Value: []byte("x"), Revision: revision}
	}
	for name, ms := range map[string][]share.Message{
		"a server's message":     {{Kind: share.Leave, Run: share.Token{1}}},
		"back in time":           {peer(11), peer(12), peer(11)},
		"an outcome before End":  {begin, {Kind: share.Event, Key: place("o", 1), Value: []byte("x"), Revision: 3}},
		"after its own revision": {begin, peer(13)},
		"before what was read":   {peer(10)},
		"no answer to a spend":   {{Kind: share.Done}},
	} {
		t.Run(name, func(t *testing.T) {
			scripted(t, nil, func(h *host) {
				o := h.outlet(nil)
				h.spend(1, 1, 1)
				spend := o.next(share.Spend)
				for _, m := range ms {
					switch m.Kind {
					case share.Begin:
						m.Seq = o.seq
					case share.Done:
						m.Seq = spend.Seq
					}
					o.Write(m)
				}
				if synctest.Wait(); h.m.Status().Connected {
					t.Error("the agent is still there")
				}
				if _, err := o.net.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("its connection: %v", err)
				}
				o = h.outlet(func(o *outlet) { o.revision.Store(20) })
				h.spend(1, 2, 2)
				o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
				if got := h.hows(); !strings.HasSuffix(got, "2act ") {
					t.Errorf("decided %q", got)
				}
			})
		})
	}
}
