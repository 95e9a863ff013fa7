package member_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
)

// TestRandomAgent: an agent that sends anything that has the form of a message does not end a member, and the next
// agent finds it as good as new.
func TestRandomAgent(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			scripted(t, nil, func(h *host) {
				r := rand.New(rand.NewPCG(seed, 2))
				for n := range byte(20) {
					o := h.outlet(func(o *outlet) { o.revision.Store(10 + int64(n)) })
					for i := range byte(20) {
						h.spend(keys.ID(1+r.IntN(5)), n, i)
						h.ending()
						o.Write(anything(r, o))
						synctest.Wait()
					}
					time.Sleep(time.Duration(r.IntN(4)) * time.Second)
				}
				time.Sleep(share.SessionTTL)
				h.decided = nil
				o := h.outlet(func(o *outlet) { o.revision.Store(1 << 40) })
				h.spend(9, 200, 200)
				o.answer(o.next(share.Spend), share.Message{Kind: share.Won})
				if got := h.hows(); got != "200act " {
					t.Errorf("decided %q, %+v", got, h.m.Status())
				}
			})
		})
	}
}

// anything returns a random message that an agent may send. Half of the answers are to requests.
func anything(r *rand.Rand, o *outlet) share.Message {
	kinds := []share.Kind{share.InSession, share.Refused, share.Begin, share.Event, share.End, share.Won, share.Spent,
		share.Repeat, share.Done, share.Failed}
	m := share.Message{Kind: kinds[r.IntN(len(kinds))]}
	revision := 1 + int64(r.IntN(40))
	switch m.Kind {
	case share.Event:
		kind := []string{"s", "a", "o", "f"}[r.IntN(4)]
		m.Revision, m.Key = revision, fmt.Sprintf("%s/gw%d", kind, r.IntN(3))
		if kind == "o" || kind == "f" {
			m.Key = place(kind, byte(1+r.IntN(9)))
		}
		m.Value = [][]byte{[]byte("x"), []byte("40"), sealed(m.Key, "text")}[r.IntN(3)]
		if m.Deleted = r.IntN(4) == 0; m.Deleted {
			m.Value = nil
		}
		return m
	case share.InSession, share.Begin, share.Done:
		m.Revision = revision
	case share.Repeat:
		m.Token = share.Token{9}
	}
	m.Seq = 1 + uint64(r.IntN(9))
	select {
	case asked := <-o.other:
		m.Seq = max(1, asked.Seq)
	default:
		if o.seq != 0 {
			m.Seq = o.seq
		}
	}
	return m
}
