package server

import (
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestSharedFloorAgain: an agent that repeats what another gateway ended gives this one nothing to do.
func TestSharedFloorAgain(t *testing.T) {
	for _, cut := range []bool{false, true} {
		h := newShop(t, 2, "")
		m := h.members[1]
		h.opens(m)
		held := m.s.firewall.Grants(time.Now())
		h.revokes(h.members[0], control.Request{Client: "ann", Cut: cut})
		lab.Must(t, m.s.firewall.Grant(t.Context(), held, time.Now())) // which another look would end
		was := m.s.shared.member.Status().Counts.Raised
		h.store.Again("f/")
		lab.Eventually(t, "the floor to come again", func() bool {
			return m.s.shared.member.Status().Counts.Raised > was
		})
		if m.endings() != 1 || m.grants() != 1 {
			t.Errorf("with cut %t: the gateway looked at it again", cut)
		}
	}
}

// TestSharedOtherClock: what a device with a clock that is ahead has opened, another one of the same client closes at
// all gateways. A retry or a restart does not bring it back.
func TestSharedOtherClock(t *testing.T) {
	for _, n := range []int{1, 2} {
		h := newShop(t, n, "")
		first, last := h.members[0], h.members[n-1]
		r := h.request(spa.TypeOpen)
		r.Time, r.For = r.Time.Add(20*time.Second), 10*time.Minute
		h.grants(last, r)
		h.wantGrants(1)
		h.closes(first, time.Now())
		for i, m := range h.members {
			if m.grants() != 0 {
				t.Errorf("of %d gateways, number %d has it open after the answer to the close", n, i)
			}
		}
		r.Time = r.Time.Add(1)
		h.refuses(first, h.seal(r))
		h.restarts(first)
		h.refuses(first, h.seal(r))
		h.wantGrants(0)
	}
}

// TestSharedOtherPorts: a close of ssh ends tcp/22 at a gateway where ssh has another port.
func TestSharedOtherPorts(t *testing.T) {
	h := newShop(t, 2, "")
	ann := *h.ann
	ann.Allow = []string{"ssh", "tcp/22"}
	h.takes(0, 2, &ann, nil)
	h.takes(1, 2, &ann, nil)
	other := h.members[1]
	other.rules(func(c *config.Config) {
		c.Services = append(c.Services, c.Services[0])
		c.Services[1].Name = "old"
		c.Services[0].Ports = []service.Ports{{Proto: service.TCP, Low: 2222, High: 2222}}
	})
	r := h.request(spa.TypeOpen)
	r.Services = []service.Service{{Proto: service.TCP, Port: 22}}
	h.grants(h.members[0], r)
	h.wantGrants(1)
	h.closes(h.members[0], time.Now())
	if n := other.grants(); n != 0 {
		t.Errorf("after the answer to a close, another gateway has %d grants", n)
	}
}

// TestSharedLaterKey: what another gateway granted to a key that this one learns of later stays ended here, once the
// client has closed or lost it: packets on their way, retries, and what the agent repeats bring nothing back.
func TestSharedLaterKey(t *testing.T) {
	for name, end := range map[string]func(h *shop, m *siteMember){
		"a close":      func(h *shop, m *siteMember) { h.closes(m, time.Now()) },
		"a revocation": func(h *shop, m *siteMember) { h.revokes(m, control.Request{Client: "ann"}) },
	} {
		h := newShop(t, 2, "")
		behind, ahead := h.members[0], h.members[1]
		old, ann := h.sender, h.rotated()
		h.takes(1, 2, ann, &h.ann.Key)
		h.as(ann)
		r := h.request(spa.TypeOpen)
		held := h.seal(h.request(spa.TypeOpen))
		h.grants(ahead, r)
		lab.Eventually(t, name+": the outcome to come", func() bool { return behind.installed() == 1 })
		h.sender = old
		end(h, behind)
		h.as(ann)
		h.takes(0, 2, ann, &h.ann.Key)
		h.refuses(behind, held)
		r.Time = r.Time.Add(1)
		h.refuses(behind, h.seal(r))
		was := behind.installed()
		h.store.Again("o/")
		lab.Eventually(t, name+": the outcome to come again", func() bool { return behind.installed() > was })
		if n := behind.grants(); n != 0 {
			t.Errorf("%s: %d grants of what was ended", name, n)
		}
	}
}

// TestSharedLongGrants: what ends a grant of many days is kept until that would have ended: a gateway that is away has
// it.
func TestSharedLongGrants(t *testing.T) {
	for name, end := range map[string]func(h *shop){
		"a close":      func(h *shop) { h.closes(h.members[0], time.Now()) },
		"a revocation": func(h *shop) { h.revokes(h.members[0], control.Request{Client: "ann"}) },
		"a bundle": func(h *shop) {
			h.has(0, 2, h.members[0].contents(nil))
			lab.Eventually(h, "it to be announced", func() bool { return h.store.Keeps(share.PutFloor) > 0 })
		},
	} {
		h := newShop(t, 2, "")
		for _, m := range h.members {
			m.rules(maxFor(30 * share.Longest))
		}
		r := h.request(spa.TypeOpen)
		r.For = 30 * share.Longest
		h.grants(h.members[1], r)
		h.wantGrants(1)
		end(h)
		if kept := time.Duration(h.store.Keeps(share.PutFloor)) * time.Second; kept < r.For {
			t.Errorf("%s is kept for %v", name, kept)
		}
	}
}

// TestSharedWaitingFloor: what was revoked without the store ends elsewhere once the store is back, even if the gateway
// decides alone by then.
func TestSharedWaitingFloor(t *testing.T) {
	h := newShop(t, 2, "")
	m := h.members[0]
	r := h.request(spa.TypeOpen)
	r.For = 10 * time.Minute
	h.grants(m, r)
	h.wantGrants(1)
	h.store.Away(true)
	lab.Eventually(t, "the gateway to notice", func() bool { return !m.member().Alive() })
	if revoked, err := m.s.revoke(t.Context(), control.Request{Client: "ann"}); err != nil || !revoked.Unconfirmed {
		t.Fatalf("got %+v, %v", revoked, err)
	}
	m.rewrite("[fleet]", "[fleet]\nstandalone = \"local\"")
	lab.Value(m.s.takeOver(t.Context()))(t)
	packet := h.seal(h.request(spa.TypeOpen))
	m.sends(packet)
	h.wantOne(packet, spa.ReasonSuperseded) // alone
	h.store.End("lb0")                      // and with it that of another run
	h.store.Away(false)
	h.connect(m)
	h.wantGrants(0)
}

// TestSharedSetBack: a gateway that was away while the store was set back ends what was closed since, even if the store
// has counted on past all revisions that this gateway knows.
func TestSharedSetBack(t *testing.T) {
	h := newShop(t, 2, "")
	m, away := h.members[0], h.members[1]
	restore := h.store.Backup()
	for range 4 { // so that it knows later revisions
		h.closes(m, time.Now())
	}
	r := h.request(spa.TypeOpen)
	r.For = 10 * time.Minute
	h.grants(m, r)
	h.wantGrants(1)
	away.agent.Close()
	m.agent.Close()
	known := away.s.shared.member.Status().Revision
	restore()
	h.store.End("lb1")
	h.connect(m)
	lab.Eventually(t, "the other to have read", func() bool { return m.s.shared.member.Status().Revision < known })
	h.closes(m, time.Now())
	for m.s.shared.member.Status().Revision <= known {
		h.closes(m, time.Now().Add(-20*time.Second))
	}
	h.connect(away)
	lab.Eventually(t, "it to take part", func() bool { return h.store.Members() == 2 })
	h.wantGrants(0)
}
