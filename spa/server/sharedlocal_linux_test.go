package server

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// installs returns how often a member put into force what another granted, by its audit log.
func (m *siteMember) installs() int { return m.audited(`"act":"install"`) }

// read waits until all members have read everything, by a revocation of an address that nobody has.
func (h *shop) read() {
	h.Helper()
	h.revokes(h.members[0], control.Request{Source: netip.MustParseAddr("198.51.100.9")})
}

// wantGrant checks that a client has a grant at a member.
func (m *siteMember) wantGrant(client, when string) {
	m.Helper()
	if n := len(m.s.firewall.GrantsOf(client, time.Now())); n != 1 {
		m.Errorf("%s: %s has %d grants", when, client, n)
	}
}

// TestSharedLocalClients: what is revoked at another gateway ends nothing that a client with a file on this one has,
// and refuses it nothing.
func TestSharedLocalClients(t *testing.T) {
	for name, r := range map[string]control.Request{
		"its address":           {Source: netip.MustParseAddr("192.0.2.2"), Cut: true},
		"a client of that name": {Client: "alice", Cut: true},
	} {
		h := newShop(t, 2, "local_clients = true\n")
		other, m := h.members[0], h.members[1]
		h.has(0, 2, other.contents([]*keys.Client{h.ann, fleetClient("alice")}))
		h.opens(other) // of which nothing is left to read again
		m.knock()
		h.revokes(other, r)
		m.wantGrant("alice", name)
		m.knock()
		if n := m.audited(`"verdict":"granted"`); n != 2 {
			t.Errorf("%s: %d of two packets are granted", name, n)
		}
		h.restarts(m)
		m.wantGrant("alice", name+", after a restart")
	}
}

// TestSharedGoneFile: the end of a client with a file is no matter of the other gateways, even if the file is gone.
func TestSharedGoneFile(t *testing.T) {
	h := newShop(t, 2, "local_clients = true\n")
	other, m := h.members[0], h.members[1]
	other.knock()
	m.knock()
	lab.Must(t, os.Remove(other.s.clientsDir()+"/alice.toml"))
	other.s.shutOut(t.Context(), "alice", os.ErrNotExist)
	if revoked, err := other.s.revoke(t.Context(), control.Request{Client: "alice"}); err == nil && revoked.Site != "" {
		t.Errorf("it is revoked at the site: %+v", revoked)
	}
	h.read()
	m.wantGrant("alice", "another's alice")
}

// TestSharedLinkLocal: a link-local address is another machine at every gateway.
func TestSharedLinkLocal(t *testing.T) {
	h := newShop(t, 2, "")
	packet := h.seal(h.request(spa.TypeOpen))
	p := arriving(packet)
	p.From, p.To = netip.MustParseAddrPort("[fe80::1]:4000"), netip.MustParseAddrPort("[fe80::9]:62201")
	p.Interface = 7
	other, m := h.members[0], h.members[1]
	m.s.process(t.Context(), p)
	h.wantOne(packet, spa.Granted)
	lab.Eventually(t, "the outcome to be looked at", func() bool { return other.installed() == 1 })
	if other.grants() != 0 || other.said.has("not granted here") {
		t.Error("another gateway looks at whether to let in the same address")
	}
	there := control.Request{Source: netip.MustParseAddr("fe80::1%eth0")}
	if revoked, err := other.s.revoke(t.Context(), there); err == nil {
		t.Errorf("it is revoked: %+v", revoked)
	}
	h.read()
	m.wantGrant("ann", "another machine with this address")
}

// TestSharedUnknownKey: a gateway that does not know a client's key yet ends what is asked for with it.
func TestSharedUnknownKey(t *testing.T) {
	for name, ends := range map[string]func(h *shop, m *siteMember){
		"a revocation": func(h *shop, m *siteMember) { h.revokes(m, control.Request{Client: "ann"}) },
		"a close":      func(h *shop, m *siteMember) { h.closes(m, time.Now()) },
	} {
		h := newShop(t, 2, "")
		old, m := h.members[0], h.members[1]
		ann := h.rotated()
		h.takes(1, 2, ann, &h.ann.Key)
		h.as(ann)
		held := h.seal(h.request(spa.TypeOpen))
		h.as(h.ann)
		ends(h, old)
		h.as(ann)
		m.sends(held)
		if got := h.wantOne(held, spa.ReasonSuperseded); m.grants() != 0 {
			t.Errorf("%s: %v, and %d grants", name, got, m.grants())
		}
	}
}

// TestSharedLateBundle: a gateway that learns late of a client's new key ends nothing of that at the others; one that
// learns that it is gone does.
func TestSharedLateBundle(t *testing.T) {
	for name, previous := range map[string]bool{"replaced": false, "replaced with an overlap": true} {
		h := newShop(t, 2, "")
		late, m := h.members[0], h.members[1]
		ann := h.rotated()
		var old *keys.Key
		if previous {
			old = &h.ann.Key
		}
		h.takes(1, 2, ann, old)
		h.as(ann)
		r := h.request(spa.TypeOpen) // after what the change refuses
		r.Time = r.Time.Add(10 * share.Window)
		late.later(10 * share.Window)
		m.later(10 * share.Window)
		h.grants(m, r)
		h.takes(0, 2, ann, nil)
		h.read()
		if n := m.grants(); n != 1 || m.endings() != 0 {
			t.Errorf("%s: %d grants after %d endings", name, n, m.endings())
		}
		h.has(0, 3, late.contents(nil))
		h.Eventually("it to end", func(m *siteMember) bool { return m.grants() == 0 })
	}
}

// TestSharedRequireSource: a gateway whose bundle wants a client to state its address installs nothing without it.
func TestSharedRequireSource(t *testing.T) {
	for name, source := range map[string]netip.Addr{"stated": netip.MustParseAddr("192.0.2.2"), "not stated": {}} {
		h := newShop(t, 2, "")
		strict := *h.ann
		strict.RequireSource = true
		h.takes(1, 2, &strict, nil)
		r := h.request(spa.TypeOpen) // after what the change refuses
		r.Source, r.Time = source, r.Time.Add(10*share.Window)
		h.members[0].later(10 * share.Window)
		h.members[1].later(10 * share.Window)
		h.grants(h.members[0], r)
		h.read()
		want := 0
		if source.IsValid() {
			want = 1
		}
		lab.Eventually(t, "the outcome to be looked at", func() bool { return h.members[1].installed() == 1 })
		if n := h.members[1].installs(); n != want {
			t.Errorf("%s: %d grants are installed, want %d", name, n, want)
		}
	}
}

// TestSharedReplays: an agent that repeats an outcome makes no second line in the log or the audit log.
func TestSharedReplays(t *testing.T) {
	for name, change := range map[string]func(c *config.Config){
		"denied":  func(c *config.Config) { c.Services[0].Name = "other" },
		"shorter": maxFor(20 * time.Second),
	} {
		h := newShop(t, 2, "")
		m := h.members[1]
		m.rules(change)
		r := h.request(spa.TypeOpen)
		h.grants(h.members[0], r)
		for range 20 {
			h.store.Again("o/")
		}
		lab.Eventually(t, "all to be looked at", func() bool { return m.installed() >= 20 })
		if n := m.said.count("not granted here") + m.installs(); n != 1 {
			t.Errorf("%s: %d lines, want one", name, n)
		}
	}
}

// TestSharedFlappingAgent: an agent that comes with nonsense again and again does not fill the log.
func TestSharedFlappingAgent(t *testing.T) {
	h := newShop(t, 1, "")
	m := h.members[0]
	lab.Must(t, m.agent.Close())
	for range 20 {
		conn := lab.Value(net.Dial("unix", m.s.config.Fleet.Share))(t)
		_, err := conn.Write([]byte("nonsense\n"))
		lab.Must(t, err)
		_, _ = io.Copy(io.Discard, conn) // until it is closed
		conn.Close()
	}
	if n := m.said.count("lost the agent"); n == 0 || n > 10 {
		t.Errorf("%d lines for 20 agents", n)
	}
}

// TestSharedOnceAtOne: what one connection may use at the gateway that granted it lets in nobody at another, even if
// the service is not so limited there.
func TestSharedOnceAtOne(t *testing.T) {
	h := newShop(t, 2, "")
	h.members[0].rules(func(c *config.Config) { c.Services[0].Once = true })
	h.grants(h.members[0], h.request(spa.TypeOpen))
	lab.Eventually(t, "the outcome to be looked at", func() bool { return h.members[1].installed() == 1 })
	if n := h.members[1].grants(); n != 0 {
		t.Errorf("%d grants elsewhere", n)
	}
}

// TestSharedLostJournal: a gateway that has lost its replay memory installs nothing from before: it may have been
// revoked there.
func TestSharedLostJournal(t *testing.T) {
	h := newShop(t, 2, "")
	m := h.members[1]
	r := h.request(spa.TypeOpen)
	r.For = time.Hour
	h.grants(h.members[0], r)
	h.wantGrants(1)
	h.store.Away(true)
	lab.Eventually(t, "the store to be away", func() bool { return !m.s.shared.member.Alive() })
	lab.Value(m.s.revoke(t.Context(), control.Request{Client: "ann"}))(t)
	m.stop()
	lab.Must(t, m.s.journal.Close())
	lab.Must(t, os.Remove(m.s.inState(config.JournalFile)))
	lab.Must(t, m.s.openJournal())
	h.store.End("lb1")
	h.store.Away(false)
	h.restarts(m)
	lab.Eventually(t, "the outcome to be looked at", func() bool { return m.installed() == 1 })
	if n := m.grants(); n != 0 {
		t.Errorf("%d grants that were revoked here", n)
	}
}
