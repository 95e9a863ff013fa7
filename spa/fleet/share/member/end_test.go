package member_test

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
)

// two is what a store has with another member that has a session.
func two(o *outlet) {
	o.has = []share.Message{
		{Kind: share.Event, Key: "s/gw1", Value: []byte(share.Token{1}.String()), Revision: 5},
		{Kind: share.Event, Key: "s/gw2", Value: []byte(share.Token{2}.String()), Revision: 6},
		{Kind: share.Event, Key: "a/gw2", Value: []byte("6"), Revision: 7},
	}
}

// ending starts an end. What it returns reports how it ended: "", "true" or "false".
func (h *host) ending() func() string {
	var mu sync.Mutex
	said := ""
	h.m.End([]byte("floor"), keep, func(ok bool) {
		mu.Lock()
		defer mu.Unlock()
		said += strconv.FormatBool(ok)
	})
	return func() string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return said
	}
}

// TestEnd: a close holds once every member with a session has acknowledged its floor, and not before.
func TestEnd(t *testing.T) {
	for name, last := range map[string]func(*outlet){
		"the other acknowledges":   func(o *outlet) { o.event("a/gw2", []byte("11")) },
		"the other's session ends": func(o *outlet) { o.event("s/gw2", nil) },
		"another session of it acknowledges": func(o *outlet) {
			o.event("s/gw2", []byte(share.Token{3}.String()))
			o.event("a/gw2", []byte("99"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			scripted(t, nil, func(h *host) {
				o := h.outlet(two)
				said := h.ending()
				put := o.next(share.PutFloor)
				if put.Seconds != int64(keep/time.Second) {
					t.Errorf("kept for %d seconds, want %v", put.Seconds, keep)
				}
				o.event("f/"+put.ID.String(), put.Value) // revision 11
				o.answer(put, share.Message{Kind: share.Done, Revision: 11})
				o.event("a/gw1", []byte("11"))
				o.event("a/gw2", []byte("10"))
				o.event("a/gw3", []byte("1")) // without a session
				if got := said(); got != "" || h.m.Status().Ending != 1 {
					t.Errorf("too early: %q", got)
				}
				last(o)
				if got := said(); got != "true" || h.m.Status().Ending != 0 {
					t.Errorf("got %q", got)
				}
				time.Sleep(member.EndWithin)
				if got := said(); got != "true" {
					t.Errorf("reported again: %q", got)
				}
			})
		})
	}
}

// TestEndOfNewSession: an acknowledgement says nothing about a later session of the member.
func TestEndOfNewSession(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(two)
		said := h.ending()
		o.answer(o.next(share.PutFloor), share.Message{Kind: share.Done, Revision: 11})
		o.event("a/gw1", []byte("11"))
		o.event("s/gw2", []byte(share.Token{3}.String()))
		if got := said(); got != "" {
			t.Errorf("got %q", got)
		}
	})
}

// TestEndOfUnseen: what is known of the members before the floor says nothing.
func TestEndOfUnseen(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		said := h.ending()
		put := o.next(share.PutFloor)
		o.answer(put, share.Message{Kind: share.Done, Revision: 11})
		if got := said(); got != "" {
			t.Errorf("before the floor is seen: %q", got)
		}
		o.event("f/"+put.ID.String(), put.Value)
		if got := said(); got != "true" {
			t.Errorf("when nobody has a session: %q", got)
		}
	})
}

// TestEndInTime: an end that others do not acknowledge is not answered, and its floor is sent nevertheless.
func TestEndInTime(t *testing.T) {
	scripted(t, nil, func(h *host) {
		said := h.ending()
		time.Sleep(member.EndWithin - time.Millisecond)
		if got := said(); got != "" {
			t.Errorf("without a store: %q too early", got)
		}
		time.Sleep(time.Second)
		if got := said(); got != "false" || h.m.Status().Counts.Unended != 1 {
			t.Errorf("without a store: %q", got)
		}
		h.m.End([]byte("nobody waits"), time.Second, nil)
		time.Sleep(member.EndWithin)
		o := h.outlet(two)
		put := o.next(share.PutFloor)
		o.none(share.PutFloor) // what nobody needs any more
		o.answer(put, share.Message{Kind: share.Failed})
		time.Sleep(time.Second)
		again := o.next(share.PutFloor)
		if again.ID != put.ID {
			t.Error("sent again under another name")
		}
		o.answer(again, share.Message{Kind: share.Done, Revision: 11})
		time.Sleep(time.Second)
		if o.none(share.PutFloor); said() != "false" || h.m.Status().Ending != 0 {
			t.Errorf("once the store has it: %q, %+v", said(), h.m.Status())
		}
	})
}

// TestManyEnds: ends are bounded too.
func TestManyEnds(t *testing.T) {
	scripted(t, nil, func(h *host) {
		for range member.MaxEnds {
			h.ending()
		}
		if got := h.ending()(); got != "false" {
			t.Errorf("one too many: %q", got)
		}
	})
}

// TestEndLater: of floors for which nobody waits only so many are on their way at once, however slow the store is, and
// all of them get there. A close does not wait for them.
func TestEndLater(t *testing.T) {
	scripted(t, nil, func(h *host) {
		const all = 10*member.MaxLater + 1
		for range all {
			h.m.EndLater([]byte("floor"), time.Hour)
		}
		if n := h.m.Status().Ending; n != all {
			t.Errorf("%d wait, want %d", n, all)
		}
		o := h.outlet(two)
		said := h.ending()
		for got := 0; got < all; {
			var sent []share.Message
			for range min(member.MaxLater, all-got) {
				sent = append(sent, o.next(share.PutFloor))
				got++
			}
			if got == member.MaxLater {
				o.answer(o.next(share.PutFloor), share.Message{Kind: share.Done, Revision: 11})
				o.event("a/gw1", []byte("11"))
				o.event("a/gw2", []byte("11"))
				if said() != "true" {
					t.Error("a close waits for them")
				}
			}
			o.none(share.PutFloor)
			time.Sleep(member.EndWithin) // as if a gateway did not confirm them
			o.none(share.PutFloor)
			for _, m := range sent {
				o.answer(m, share.Message{Kind: share.Done, Revision: 100})
			}
			time.Sleep(time.Second)
		}
		if n := h.m.Status(); n.Ending != 0 || n.Counts.Unended != 0 {
			t.Errorf("at last: %+v", n)
		}
	})
}

// TestSettled: an outcome gets to the store, sealed, as long as the grant lasts, whatever goes wrong first.
func TestSettled(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		h.spend(1, 1, 1)
		spend := o.next(share.Spend)
		o.answer(spend, share.Message{Kind: share.Won})
		h.hows()
		h.m.Settled(h.decided[0].attempt, []byte("granted"), time.Now().Add(time.Hour))
		first := o.next(share.Settle)
		if first.ID != spend.ID || first.Seconds != 3600 || strings.Contains(string(first.Value), "granted") {
			t.Errorf("sent %+v", first)
		}
		o.answer(first, share.Message{Kind: share.Failed})
		time.Sleep(time.Second)
		o.next(share.Settle)
		o = h.outlet(nil)
		last := o.next(share.Settle)
		o.answer(last, share.Message{Kind: share.Done})
		h.spend(1, 2, 1)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Repeat, Token: spend.Token, Value: last.Value})
		time.Sleep(time.Second)
		if o.none(share.Settle); h.hows() != "1act 2repeat " || h.decided[1].outcome != "granted" {
			t.Errorf("decided %s", h.hows())
		}
	})
}

// TestShortOutcome: an outcome is known as long as its request id.
func TestShortOutcome(t *testing.T) {
	scripted(t, nil, func(h *host) {
		o := h.outlet(nil)
		h.spend(1, 1, 1)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
		h.hows()
		h.m.Settled(h.decided[0].attempt, []byte("refused"), time.Time{})
		if got, want := o.next(share.Settle).Seconds, int64(share.Lease(window)/time.Second); got != want {
			t.Errorf("kept for %d seconds, want %d", got, want)
		}
	})
}

// TestReplacedAgent: a new agent takes the place of the one before. What that one had not answered is given up.
func TestReplacedAgent(t *testing.T) {
	scripted(t, nil, func(h *host) {
		before := h.outlet(nil)
		h.spend(1, 1, 1)
		lost := before.next(share.Spend)
		o := h.outlet(nil)
		if before.Write(share.Message{Kind: share.Won, Seq: lost.Seq}) == nil {
			t.Error("the one before can still answer")
		}
		h.spend(1, 2, 1)
		o.answer(o.next(share.Spend), share.Message{Kind: share.Repeat, Token: lost.Token})
		if got := h.hows(); got != "2act " {
			t.Errorf("decided %q", got)
		}
	})
}

// TestStop: a member that stops ends its session, after its last decision, and then takes nothing.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, agents: make(chan net.Conn)}
		h.m = member.New(config(h))
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			h.m.Run(ctx, h.agents)
			close(ended)
		}()
		o := h.outlet(nil)
		deciding, left := make(chan struct{}), 0
		h.m.Spend(&member.Spend{Key: 1, Decide: func(member.How, *member.Attempt, []byte) {
			close(deciding)
			time.Sleep(time.Second)
			left = len(o.other)
		}})
		o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
		<-deciding
		end()
		<-ended
		if o.next(share.Leave); left != 0 {
			t.Error("left while a packet was decided")
		}
		if h.m.Alive() || h.spend(1, 2, 2) {
			t.Error("takes packets after its end")
		}
	})
}

// TestStatus: administrators see the members of the site.
func TestStatus(t *testing.T) {
	scripted(t, nil, func(h *host) {
		if s := h.m.Status(); s.Connected || s.Alive || len(s.Peers) != 0 {
			t.Errorf("before anything: %+v", s)
		}
		o := h.outlet(two)
		s := h.m.Status()
		if !s.Connected || !s.Alive || s.Revision != 10 || len(s.Peers) != 2 || s.Peers[0].Name != "gw1" ||
			s.Peers[1] != (member.Peer{Name: "gw2", Acknowledged: 6}) {
			t.Errorf("got %+v", s)
		}
		o.net.Close()
		if synctest.Wait(); h.m.Status().Connected || !h.m.Alive() {
			t.Errorf("without an agent: %+v", h.m.Status())
		}
	})
}
