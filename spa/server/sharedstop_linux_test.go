package server

import (
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// halts lets a member stop within the next change of its firewall until its session has ended, as the process may be
// stopped. Then what happens while it is stopped, and it goes on with a new agent.
func (h *shop) halts(m *siteMember, name string, before, happens func()) {
	h.Helper()
	stopped, on := make(chan struct{}), make(chan struct{})
	slow := func() {
		close(stopped)
		<-on
	}
	m.slow.Store(&slow)
	before()
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		h.Fatal("nothing changes the firewall")
	}
	m.agent.Close()
	h.store.End(name)
	happens()
	h.connect(m)
	lab.Eventually(h, "it to know that its session has ended", func() bool { return !m.s.shared.member.Alive() })
	close(on)
}

// TestSharedStopped: a gateway that is stopped while it grants, for longer than its session lasts, takes the grant back
// as soon as it goes on: a close may have been answered without it.
func TestSharedStopped(t *testing.T) {
	for name, closes := range map[string]bool{"closed elsewhere": true, "nothing is closed": false} {
		h := newShop(t, 2, "")
		m := h.members[0]
		packet := h.seal(h.request(spa.TypeOpen))
		h.halts(m, "lb0", func() { m.sends(packet) }, func() {
			if closes {
				h.closes(h.members[1], time.Now())
			}
		})
		h.wantOne(packet, spa.ReasonFailed)
		if n := m.grants(); n != 0 {
			t.Errorf("%s: %d grants", name, n)
		}
		h.ready()
		h.opens(m)
	}
}

// TestSharedStoppedInstalling: the same of what another gateway granted. What nobody has closed it installs later.
func TestSharedStoppedInstalling(t *testing.T) {
	for name, want := range map[string]int{"closed elsewhere": 0, "nothing is closed": 1} {
		h := newShop(t, 2, "")
		m := h.members[0]
		outcomes := uint64(2 - want) // a close has one too
		h.halts(m, "lb0", func() { h.grants(h.members[1], h.request(spa.TypeOpen)) }, func() {
			if want == 0 {
				h.closes(h.members[1], time.Now())
			}
		})
		lab.Eventually(t, "the outcomes to be looked at", func() bool { return m.installed() == outcomes })
		if n := m.installs(); n != want || m.grants() != want {
			t.Errorf("%s: installed %d times, and holds %d grants; want %d", name, n, m.grants(), want)
		}
	}
}

// TestSharedStoppedRetry: a gateway that is stopped while it answers a retry does not answer it. The next one it does.
func TestSharedStoppedRetry(t *testing.T) {
	h := newShop(t, 2, "")
	m := h.members[0]
	r := h.opens(h.members[1])
	_, err := m.s.firewall.Revoke(t.Context(), firewall.Match{}, time.Now())
	lab.Must(t, err)
	r.Time = r.Time.Add(1)
	first := h.seal(r)
	h.halts(m, "lb0", func() { m.sends(first) }, func() {})
	h.ready()
	r.Time = r.Time.Add(1)
	h.grants(m, r)
	if got := h.receipts(first); len(got) != 0 {
		t.Errorf("it is answered %+v", got)
	}
}
