package server

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// endings returns how often other gateways ended grants at a member, by its audit log.
func (m *siteMember) endings() int { return m.audited(`"act":"end"`) }

// audited returns how often a member's audit log has these words.
func (m *siteMember) audited(words string) int {
	m.Helper()
	return strings.Count(string(lab.Value(os.ReadFile(m.s.audit.Path()))(m)), words)
}

// restarts starts a member again, and waits until it has read what the others did.
func (h *shop) restarts(m *siteMember) {
	h.Helper()
	h.rejoins(m)
	lab.Eventually(h, "the outcomes to be read again", func() bool { return m.installed() > 0 })
}

// rejoins starts a member again.
func (h *shop) rejoins(m *siteMember) {
	h.Helper()
	m.stop()
	key := m.s.shared.key
	m.s.shared = sharing{}
	m.s.joinSite("www", key)
	lab.Must(h, m.s.openShare())
	h.start(m)
	h.ready()
}

// installed returns how many outcomes of other gateways a member has looked at.
func (m *siteMember) installed() uint64 { return m.s.shared.member.Status().Counts.Installed }

// closes closes ssh through a member, with a packet of this stamp.
func (h *shop) closes(m *siteMember, stamp time.Time) {
	h.Helper()
	r := h.request(spa.TypeClose)
	r.Time = stamp
	packet := h.seal(r)
	m.sends(packet)
	h.wantOne(packet, spa.Closed)
}

// TestSharedRestart: a gateway that starts again ends what it holds of before a close, and never what was granted after
// it, at whichever member it was granted.
func TestSharedRestart(t *testing.T) {
	for name, winner := range map[string]int{"its own": 1, "another's": 0} {
		h := newShop(t, 2, "")
		m := h.members[1]
		h.opens(h.members[winner])
		m.stop()
		h.closes(h.members[0], time.Now())
		if m.grants() != 1 || m.endings() != 0 {
			t.Fatalf("%s: a gateway that is down knows of a close", name)
		}
		h.restarts(m)
		h.wantGrants(0)
		if n := m.endings(); n != 1 {
			t.Errorf("%s: %d endings, want one", name, n)
		}
		h.opens(h.members[winner])
		m.stop()
		h.restarts(m)
		h.wantGrants(1)
		if n := m.endings(); n != 1 {
			t.Errorf("%s: the new grant ended at a restart, by %d endings", name, n-1)
		}
	}
}

// TestSharedNewerGrant: a close at a gateway that does not know yet what another one has granted ends nothing there
// that was asked for after it.
func TestSharedNewerGrant(t *testing.T) {
	h := newShop(t, 2, "")
	asked, m, now := h.members[0], h.members[1], time.Now()
	open := func(stamp time.Time, last time.Duration) {
		r := h.request(spa.TypeOpen)
		r.Time, r.For = stamp, last
		h.grants(m, r)
		if held := m.s.firewall.Grants(time.Now()); len(held) != 1 || !held[0].Asked.Equal(stamp) {
			t.Fatalf("got %v", held)
		}
	}
	open(now.Add(-20*time.Second), 10*time.Minute)
	h.wantGrants(1)
	h.store.Late(asked.agent, true)
	open(now.Add(-10*time.Second), time.Minute) // which does not shorten it
	r := h.request(spa.TypeClose)
	r.Time = now.Add(-15 * time.Second)
	packet := h.seal(r)
	asked.sends(packet)
	lab.Eventually(t, "the close to be announced", func() bool { return h.store.Keeps(share.PutFloor) > 0 })
	h.store.Late(asked.agent, false)
	h.wantOne(packet, spa.Closed)
	if m.grants() != 1 || m.endings() != 0 {
		t.Error("a close ended a grant that was asked for after it")
	}
	h.closes(asked, now.Add(-10*time.Second))
	if m.grants() != 0 || m.endings() != 1 {
		t.Error("a close of the same time did not end it")
	}
}

// TestSharedCutOnce: what was revoked with its sessions is not cut again when a gateway starts: newer sessions may
// outlive their grants.
func TestSharedCutOnce(t *testing.T) {
	h := newShop(t, 2, "")
	source, now := netip.MustParseAddr("192.0.2.2"), time.Now()
	h.members[0].s.line.Lock()
	h.members[0].s.now = func() time.Time { return now }
	h.members[0].s.line.Unlock()
	h.opens(h.members[0])
	_, err := h.members[0].s.revoke(t.Context(), control.Request{Source: source, Cut: true})
	lab.Must(t, err)
	floor := share.Floor{Of: netip.PrefixFrom(source, 32), Cut: true, Topics: floorsAt(
		[]topic{ofAddress(ofFleet, source), ofNetworks(ofFleet, source)}, h.members[0].s.final(now))}
	text := lab.Value(floor.Encode())(t)
	for i, m := range h.members {
		m.s.line.Lock()
		again, err := m.s.raise(t.Context(), &floor, cutBy(text))
		first, _ := m.s.raise(t.Context(), &floor, cutBy([]byte("another")))
		m.s.line.Unlock()
		if err != nil || len(again) != 0 || len(first) == 0 {
			t.Errorf("member %d would cut the sessions of %d grants again, and another's of %d; %v", i, len(again),
				len(first), err)
		}
	}
}
