package server

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestSharedSchedules: whatever gateways, devices of a client and restarts do, nothing is in force after the answer to
// a close until somebody asks anew.
func TestSharedSchedules(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { schedule(t, rand.New(rand.NewPCG(seed, 1)), 2+int(seed%2)) })
	}
}

// schedule runs a schedule with so many gateways.
func schedule(t *testing.T, rnd *rand.Rand, gateways int) {
	h := newShop(t, gateways, "")
	skew := []time.Duration{0, time.Duration(rnd.IntN(50)-25) * time.Second}
	any := func() *siteMember { return h.members[rnd.IntN(len(h.members))] }
	var opened []spa.Request
	closed, log := false, []string{}
	stamp := func(device int) time.Time { return time.Now().Add(skew[device]) }
	for range 25 {
		what := ""
		switch rnd.IntN(6) {
		case 0, 1:
			d := rnd.IntN(2)
			r := h.request(spa.TypeOpen)
			r.Time, r.For = stamp(d), time.Duration(1+rnd.IntN(9))*time.Minute
			packet := h.seal(r)
			opened = append(opened, r)
			any().sends(packet)
			lab.Eventually(t, "an answer", func() bool { return len(h.receipts(packet)) > 0 })
			if h.receipts(packet)[0].Status == spa.Granted {
				closed = false
			}
			what = "open"
		case 2:
			r := h.request(spa.TypeClose)
			r.Time = stamp(rnd.IntN(2))
			packet := h.seal(r)
			any().sends(packet)
			h.wantOne(packet, spa.Closed)
			closed, what = true, "close"
		case 3:
			if len(opened) > 0 {
				r := opened[rnd.IntN(len(opened))]
				r.Time = r.Time.Add(time.Duration(1 + rnd.IntN(1000)))
				packet := h.seal(r)
				any().sends(packet)
				lab.Eventually(t, "an answer", func() bool { return len(h.receipts(packet)) > 0 })
			}
			what = "retry"
		case 4:
			h.rejoins(any())
			what = "restart"
		case 5:
			h.store.Again([]string{"o/", "f/"}[rnd.IntN(2)])
			what = "again"
		}
		log = append(log, what)
		if !closed {
			continue
		}
		for i, m := range h.members {
			if n := m.grants(); n != 0 {
				t.Fatalf("clocks %v apart: gateway %d has %d grants after %v", skew[1], i, n, log)
			}
		}
	}
}
