package server

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/net/stun"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestSharedAddress: a packet that reaches all gateways of a site is granted once, answered once, and in force at all
// of them; a retry is answered as the first; a close at another gateway ends it everywhere before it is answered.
func TestSharedAddress(t *testing.T) {
	h := newShop(t, 3, "")
	r := h.request(spa.TypeOpen)
	packet := h.seal(r)
	for _, m := range h.members {
		m.sends(packet)
		m.sends(packet) // a copy
	}
	first := h.wantOne(packet, spa.Granted)
	h.wantGrants(1)
	lines := 0
	for _, m := range h.members {
		text := lab.Value(os.ReadFile(m.s.audit.Path()))(t)
		lines += strings.Count(string(text), `"verdict":"granted"`)
	}
	if lines != 1 {
		t.Errorf("it is recorded as granted %d times", lines)
	}
	for _, m := range h.members {
		r.Time = r.Time.Add(1)
		again := h.seal(r)
		m.sends(again)
		got := h.wantOne(again, spa.Granted)
		if got.Services[0].For > first.Services[0].For {
			t.Errorf("a retry gets longer: %v after %v", got.Services[0].For, first.Services[0].For)
		}
	}
	close := h.seal(h.request(spa.TypeClose))
	h.members[2].sends(close)
	h.wantOne(close, spa.Closed)
	for i, m := range h.members {
		if m.grants() != 0 {
			t.Errorf("after the answer to a close, member %d has a grant", i)
		}
	}
	old := h.request(spa.TypeOpen)
	old.Time = old.Time.Add(-10 * time.Second) // from before the close
	late := h.seal(old)
	h.members[0].sends(late)
	h.wantOne(late, spa.ReasonSuperseded)
	h.opens(h.members[1])
}

// TestSharedRepeatInstalls: a retry that another gateway answers is in force there before the answer.
func TestSharedRepeatInstalls(t *testing.T) {
	h := newShop(t, 3, "")
	r := h.opens(h.members[0])
	m := h.members[1]
	_, err := m.s.firewall.Revoke(t.Context(), firewall.Match{}, time.Now())
	lab.Must(t, err)
	r.Time = r.Time.Add(1)
	packet := h.seal(r)
	m.sends(packet)
	h.wantOne(packet, spa.Granted)
	if m.grants() != 1 {
		t.Error("the answer says that it is open, and it is not")
	}
	r.Services, r.Time = []service.Service{{Name: "web"}}, r.Time.Add(1)
	other := h.seal(r)
	h.members[2].sends(other) // which has not seen the first
	h.wantOne(other, spa.ReasonIDReused)
}

// TestSharedLastLook: what comes between a packet and the store's answer counts.
func TestSharedLastLook(t *testing.T) {
	for name, between := range map[string]func(h *shop, m *siteMember){
		"the client is revoked": func(h *shop, m *siteMember) {
			gone := *h.ann
			gone.Revoked = time.Now()
			m.offer(m.sealed(m.seal, "lb0", m.to, 2, m.contents([]*keys.Client{&gone})))
			_, err := m.s.takeBundle(h.Context(), true)
			lab.Must(h, err)
		},
		"the stamp gets too old": func(h *shop, m *siteMember) {
			m.s.line.Lock()
			defer m.s.line.Unlock()
			m.s.now = func() time.Time { return time.Now().Add(m.s.config.Window + time.Second) }
		},
	} {
		h := newShop(t, 1, "")
		m := h.members[0]
		h.store.Hold()
		packet := h.seal(h.request(spa.TypeOpen))
		m.sends(packet)
		lab.Eventually(t, "the store to be asked", func() bool { return h.store.Held() > 0 })
		between(h, m)
		h.store.Release()
		lab.Eventually(t, "the answer to be taken", func() bool { return m.s.shared.member.Status().Counts.Won == 1 })
		m.s.line.Lock()
		m.s.now = time.Now
		m.s.line.Unlock()
		if name == "the stamp gets too old" { // and a retry may be decided
			h.opens(m)
		}
		if got := h.receipts(packet); len(got) != 0 || m.grants() > 0 && name == "the client is revoked" {
			t.Errorf("%s: got %v and %d grants", name, got, m.grants())
		}
	}
}

// TestSharedAway: without the store there is no answer, or, if the settings say so, each gateway decides alone. Clients
// with files are decided as ever.
func TestSharedAway(t *testing.T) {
	for standalone, want := range map[string]int{"refuse": 0, "local": 2} {
		h := newShop(t, 2, "local_clients = true\nstandalone = \""+standalone+"\"\n")
		h.store.Away(true)
		packet := h.seal(h.request(spa.TypeOpen))
		for _, m := range h.members {
			m.sends(packet)
			m.knock() // alice has a file
			if n := len(m.s.firewall.GrantsOf("alice", time.Now())); n != 1 {
				t.Errorf("%s: a client with a file has %d grants", standalone, n)
			}
		}
		if want == 0 {
			h.Eventually("the packet to be given up", func(m *siteMember) bool {
				return m.s.shared.member.Status().Counts.Unanswered == 1
			})
		} else {
			h.wantGrants(2)
			lab.Eventually(t, "the answers", func() bool { return len(h.receipts(packet)) >= want })
		}
		if got := len(h.receipts(packet)); got != want {
			t.Errorf("%s: %d answers, want %d", standalone, got, want)
		}
		if want > 0 { // the others learn of a close once they can
			close := h.seal(h.request(spa.TypeClose))
			h.members[0].sends(close)
			h.wantOne(close, spa.Closed)
			h.store.Away(false)
			h.wantGrants(1) // alice's
		}
	}
}

// TestSharedRevoke: spa-server revoke ends grants on all gateways, before it says so; if one does not answer, it says
// that.
func TestSharedRevoke(t *testing.T) {
	h := newShop(t, 3, "")
	for i, r := range []control.Request{{Client: "ann"}, {Source: netip.MustParseAddr("192.0.2.2")}} {
		h.opens(h.members[i])
		revoked, err := h.members[2].s.revoke(t.Context(), r)
		if err != nil || revoked.Site != "www" || revoked.Unconfirmed {
			t.Fatalf("got %+v, %v", revoked, err)
		}
		for j, m := range h.members {
			if m.grants() != 0 {
				t.Errorf("%+v: member %d has a grant", r, j)
			}
		}
		h = newShop(t, 3, "")
	}
	h = newShop(t, 2, "")
	h.opens(h.members[0])
	h.store.Away(true)
	lab.Eventually(t, "the gateway to notice", func() bool { return !h.members[0].member().Alive() })
	revoked, err := h.members[0].s.revoke(t.Context(), control.Request{Client: "ann"})
	if err != nil || !revoked.Unconfirmed || h.members[0].grants() != 0 {
		t.Errorf("without the store: got %+v, %v", revoked, err)
	}
	h.store.Away(false)
	h.wantGrants(0) // it is announced later
}

// TestSharedDeadMember: a gateway that is gone delays the answer to a close until its session has ended, and when it
// comes back it has nothing that was closed.
func TestSharedDeadMember(t *testing.T) {
	h := newShop(t, 2, "")
	h.opens(h.members[0])
	dead := h.members[1]
	dead.agent.Close() // and nobody leaves for it
	close := h.seal(h.request(spa.TypeClose))
	h.members[0].sends(close)
	lab.Eventually(t, "the grant to end here", func() bool { return h.members[0].grants() == 0 })
	if len(h.receipts(close)) != 0 || dead.grants() != 1 {
		t.Fatal("a close is answered while another gateway may have the grant")
	}
	h.store.End("lb1")
	h.wantOne(close, spa.Closed)
	known := dead.s.shared.member.Status().Counts.Installed
	h.connect(dead)
	lab.Eventually(t, "the outcome of before to come again", func() bool {
		return dead.s.shared.member.Status().Counts.Installed > known
	})
	h.wantGrants(0)
	h.ready()
	h.opens(dead)
}

// TestSharedReread: a gateway that reads again what was closed keeps what it has granted since.
func TestSharedReread(t *testing.T) {
	h := newShop(t, 2, "")
	m := h.members[1]
	h.opens(m)
	close := h.seal(h.request(spa.TypeClose))
	h.members[0].sends(close)
	h.wantOne(close, spa.Closed)
	h.opens(m)
	m.agent.Close()
	h.connect(m)
	h.ready()
	_, err := h.members[0].s.revoke(t.Context(), control.Request{Source: netip.MustParseAddr("198.51.100.9")})
	lab.Must(t, err) // then it has read all that was before
	if m.grants() != 1 {
		t.Error("a grant from after a close has ended")
	}
}

// TestSharedBundle: a client that the bundle of one gateway revokes is shut out at the others.
func TestSharedBundle(t *testing.T) {
	h := newShop(t, 2, "")
	r := h.request(spa.TypeOpen)
	r.For = 10 * time.Minute // it does not end by itself
	h.grants(h.members[1], r)
	h.wantGrants(1)
	gone := *h.ann
	gone.Revoked = time.Now()
	m := h.members[0]
	m.offer(m.sealed(m.seal, "lb0", m.to, 2, m.contents([]*keys.Client{&gone})))
	m.take(t)
	h.wantGrants(0)
}

// TestSharedBundleOfMany: however many clients a bundle removes at once, all are shut out at the other gateways, and a
// close is answered meanwhile.
func TestSharedBundleOfMany(t *testing.T) {
	h := newShop(t, 2, "")
	gone := make([]*keys.Client, 1000)
	for i := range gone {
		gone[i] = fleetClient(fmt.Sprintf("c%d", i))
	}
	for i, m := range h.members {
		h.has(i, 2, m.contents(append(slices.Clone(gone), h.ann)))
	}
	other := h.members[1]
	for _, c := range append(slices.Clone(gone), h.ann) {
		h.as(c)
		r := h.request(spa.TypeOpen)
		r.For = 10 * time.Minute
		other.sends(h.seal(r))
	}
	h.wantGrants(len(gone) + 1)
	h.as(h.ann)
	h.has(0, 3, h.members[0].contents([]*keys.Client{h.ann}))
	h.closes(h.members[0], time.Now())
	h.wantGrants(0)
	lab.Eventually(t, "all to be announced", func() bool { return h.members[0].s.shared.member.Status().Ending == 0 })
}

// TestSharedPolicy: a gateway installs only what its own settings allow, and never for longer.
func TestSharedPolicy(t *testing.T) {
	for name, test := range map[string]struct {
		change func(c *config.Config)
		grants int
	}{
		"the same":              {func(*config.Config) {}, 1},
		"another service":       {func(c *config.Config) { c.Services[0].Name = "other" }, 0},
		"for one connection":    {func(c *config.Config) { c.Services[0].Once = true }, 0},
		"for a shorter time":    {func(c *config.Config) { c.Services[0].MaxFor = time.Second }, 1},
		"no grant is permitted": {func(c *config.Config) { c.Limits.Grants = 0 }, 0},
	} {
		h := newShop(t, 2, "")
		m := h.members[1]
		m.s.line.Lock()
		m.rule(test.change)
		m.s.line.Unlock()
		packet := h.seal(h.request(spa.TypeOpen))
		h.members[0].sends(packet)
		receipt := h.wantOne(packet, spa.Granted)
		lab.Eventually(t, name+": the outcome to arrive", func() bool {
			return m.s.shared.member.Status().Counts.Installed == 1
		})
		m.s.line.Lock() // it has been decided
		got := m.s.firewall.Grants(time.Now())
		m.s.line.Unlock()
		if len(got) != test.grants {
			t.Errorf("%s: %d grants, want %d", name, len(got), test.grants)
		}
		for _, g := range got {
			if g.Until.After(receipt.Time.Add(receipt.Services[0].For)) {
				t.Errorf("%s: it lasts until %v, and the receipt says %v", name, g.Until,
					receipt.Time.Add(receipt.Services[0].For))
			}
		}
	}
}

// TestSharedStranger: only root, the server's own user and that of the agent are taken for the agent.
func TestSharedStranger(t *testing.T) {
	s := &Server{shared: sharing{agent: 64123}}
	for uid, want := range map[int]bool{0: true, os.Geteuid(): true, 64123: true, 64124: false, 65534: false} {
		if got := s.isAgent(uid); got != want {
			t.Errorf("user %d: %v, want %v", uid, got, want)
		}
	}
}

// TestSharedBrowser: a browser's check is answered under its own transaction although other packets come in between,
// and so are its further checks.
func TestSharedBrowser(t *testing.T) {
	h := newShop(t, 1, "")
	m := h.members[0]
	m.bench.sender = h.sender
	h.store.Hold()
	first := m.framed(m.request(spa.TypeOpen, "ssh"), 1)
	packet := first.Data
	m.s.process(t.Context(), first)
	clear(first.Frame) // the next packet takes its place
	h.store.Release()
	for i := range byte(3) {
		lab.Eventually(t, "an answer", func() bool { return len(m.out.sent()) > int(i) })
		id, from, err := stun.ParseResponse(m.out.sent()[i])
		if err != nil || id[0] != i+1 || from != first.From {
			t.Errorf("check %d: got %x, %v, %v", i+1, id, from, err)
		}
		m.s.process(t.Context(), m.check(packet, i+2))
	}
	if m.grants() != 1 {
		t.Errorf("%d grants", m.grants())
	}
}
