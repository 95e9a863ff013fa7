package server

import (
	"testing"
	"time"

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
