package server

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// rules changes a member's settings, as a reload does.
func (m *siteMember) rules(change func(c *config.Config)) {
	m.Helper()
	m.s.line.Lock()
	defer m.s.line.Unlock()
	m.rule(change)
	if m.s.identity.Window != m.s.config.Window {
		m.s.identity.Window = m.s.config.Window
		lab.Must(m, m.s.journal.Retune(m.s.config.Window, 256, time.Now()))
	}
}

// maxFor returns the setting max_for.
func maxFor(d time.Duration) func(c *config.Config) {
	return func(c *config.Config) { c.Services[0].MaxFor, c.Services[0].For = d, min(d, c.Services[0].For) }
}

// window returns the setting window.
func window(d time.Duration) func(c *config.Config) { return func(c *config.Config) { c.Window = d } }

// later sets a member's clock ahead.
func (m *siteMember) later(d time.Duration) {
	m.s.line.Lock()
	defer m.s.line.Unlock()
	m.s.now = func() time.Time { return time.Now().Add(d) }
}

// takes gives a member a bundle with a client, and with its replaced key if there is one.
func (h *shop) takes(i int, serial int64, c *keys.Client, previous *keys.Key) {
	h.Helper()
	m := h.members[i]
	all := m.contents([]*keys.Client{c})
	if server := m.seal.Fleet.Server(m.site); previous != nil {
		all.Clients[0].Previous = &keys.Previous{ID: previous.IDAt(server), Key: previous.At(server),
			Until: time.Now().Add(time.Hour).Truncate(time.Second)}
	}
	h.has(i, serial, all)
}

func (h *shop) has(i int, serial int64, all *fleet.Contents) {
	h.Helper()
	m := h.members[i]
	m.offer(m.sealed(m.seal, fmt.Sprintf("lb%d", i), m.to, serial, all))
	if r, err := m.s.takeBundle(h.Context(), true); err != nil || r == nil {
		h.Fatalf("a good bundle: got %v, %v", r, err)
	}
}

// rotated returns ann with a new key.
func (h *shop) rotated() *keys.Client {
	ann := *h.ann
	ann.Key = keys.NewKey()
	return &ann
}

// as knocks with this client's key from now on.
func (h *shop) as(c *keys.Client) { h.sender = h.members[0].fleetSite.sender(c) }

// grants lets a member grant a request.
func (h *shop) grants(m *siteMember, r spa.Request) {
	h.Helper()
	packet := h.seal(r)
	m.sends(packet)
	h.wantOne(packet, spa.Granted)
}

// refuses lets a member refuse a request that was made before what the others ended.
func (h *shop) refuses(m *siteMember, packet []byte) {
	h.Helper()
	m.sends(packet)
	h.wantOne(packet, spa.ReasonSuperseded)
	if n := m.grants(); n != 0 {
		h.Errorf("it is refused, and opens %d grants", n)
	}
}

// revokes revokes through a member, which the others confirm.
func (h *shop) revokes(m *siteMember, r control.Request) {
	h.Helper()
	if revoked, err := m.s.revoke(h.Context(), r); err != nil || revoked.Site != "www" || revoked.Unconfirmed {
		h.Fatalf("got %+v, %v", revoked, err)
	}
}

// TestSharedCloseByAnotherName: a close of ssh ends tcp/22 at a gateway that has it, even if the one that is asked does
// not.
func TestSharedCloseByAnotherName(t *testing.T) {
	for name, late := range map[string]bool{"not there yet": true, "ended there": false} {
		h := newShop(t, 2, "")
		ann := *h.ann
		ann.Allow = []string{"ssh", "tcp/22"}
		h.takes(0, 2, &ann, nil)
		h.takes(1, 2, &ann, nil)
		asked, holds := h.members[0], h.members[1]
		h.store.Late(asked.agent, late)
		if !late {
			asked.rules(maxFor(time.Millisecond))
		}
		r := h.request(spa.TypeOpen)
		r.Services = []service.Service{{Proto: service.TCP, Port: 22}}
		h.grants(holds, r)
		if !late {
			lab.Eventually(t, "the outcome to arrive", func() bool { return asked.installed() > 0 })
			lab.Eventually(t, "it to end", func() bool { return asked.grants() == 0 })
		}
		packet := h.seal(h.request(spa.TypeClose))
		asked.sends(packet)
		lab.Eventually(t, "the close to be announced", func() bool { return h.store.Keeps(share.PutFloor) > 0 })
		h.store.Late(asked.agent, false)
		h.wantOne(packet, spa.Closed)
		if n := holds.grants(); n != 0 {
			t.Errorf("%s: after the answer to a close, another gateway has %d grants", name, n)
		}
	}
}

// TestSharedShorterWindow: what was revoked at a gateway with a short window is refused at one with a longer window and
// another clock.
func TestSharedShorterWindow(t *testing.T) {
	h := newShop(t, 2, "")
	short, long := h.members[0], h.members[1]
	short.rules(window(time.Second))
	long.rules(window(2 * time.Minute))
	r := h.request(spa.TypeOpen)
	r.Time = r.Time.Add(2*share.Window - 10*time.Second)
	held := h.seal(r)
	h.revokes(short, control.Request{Client: "ann"})
	long.later(share.Window)
	h.refuses(long, held)
}

// TestSharedFloorsOutlast: a close is kept for longer than any grant that it may end, whatever the gateways' settings.
func TestSharedFloorsOutlast(t *testing.T) {
	h := newShop(t, 2, "")
	h.members[0].rules(maxFor(time.Minute))
	h.members[1].rules(maxFor(30 * share.Longest))
	r := h.request(spa.TypeOpen)
	r.For = 30 * share.Longest
	h.grants(h.members[1], r)
	h.closes(h.members[0], time.Now())
	if grant, floor := h.store.Keeps(share.Settle), h.store.Keeps(share.PutFloor); grant == 0 || grant >= floor {
		t.Errorf("the grant is kept for %d s, its close for %d s", grant, floor)
	}
}

// TestSharedFarStamps: a stamp too far off for the site is not spent, even within a gateway's own window, but it is
// counted, and status names the client. Clients with files have that window.
func TestSharedFarStamps(t *testing.T) {
	h := newShop(t, 1, "local_clients = true\n")
	m := h.members[0]
	m.rules(window(10 * share.Window))
	r := h.request(spa.TypeOpen)
	r.Time = r.Time.Add(2 * share.Window)
	far := h.seal(r)
	m.sends(far)
	if n := m.s.audit.Counts()["unopened: stale packet"]; n != 1 {
		t.Errorf("counted are %v", m.s.audit.Counts())
	}
	var status control.Status
	m.s.seen.tell(&status)
	if c := status.Seen; len(c) != 1 || c[0].Client != "ann" || c[0].Stale == nil || c[0].Stale.Packets != 1 {
		t.Errorf("status shows %+v", c)
	}
	m.sends(m.bench.seal(r))
	if n := len(m.s.firewall.GrantsOf("alice", time.Now())); n != 1 {
		t.Errorf("a client with a file has %d grants", n)
	}
	h.grants(m, h.request(spa.TypeOpen)) // by then the other would be spent
	if n := m.s.shared.member.Status().Counts.Won; n != 1 || len(h.receipts(far)) != 0 {
		t.Errorf("%d packets are spent, want one; answers to the other: %v", n, h.receipts(far))
	}
}

// TestSharedEndedHere: a grant that has ended at a gateway by its own max_for is not in force there again.
func TestSharedEndedHere(t *testing.T) {
	for name, again := range map[string]func(h *shop, m *siteMember, r spa.Request){
		"a retry": func(h *shop, m *siteMember, r spa.Request) {
			r.Time = r.Time.Add(1)
			packet := h.seal(r)
			m.sends(packet)
			lab.Eventually(h, "an answer", func() bool { return len(h.receipts(packet)) == 1 })
		},
		"a restart": func(h *shop, m *siteMember, _ spa.Request) { h.restarts(m) },
	} {
		h := newShop(t, 2, "")
		long, short := h.members[0], h.members[1]
		long.rules(maxFor(time.Hour))
		short.rules(maxFor(time.Minute))
		r := h.request(spa.TypeOpen)
		r.For = time.Hour
		h.grants(long, r)
		h.wantGrants(1)
		short.rules(maxFor(time.Millisecond)) // as if its minute were over
		_, err := short.s.firewall.Revoke(t.Context(), firewall.Match{}, time.Now())
		lab.Must(t, err)
		was := short.installs()
		again(h, short, r)
		if n := short.installs(); n != was {
			t.Errorf("%s: it is in force again", name)
		}
	}
}

// TestSharedEachEnd: each service lasts as long as its own receipt says at most, even if another one has ended here.
func TestSharedEachEnd(t *testing.T) {
	h := newShop(t, 2, "")
	ann := *h.ann
	ann.Allow = []string{"ssh", "web"}
	for i, longest := range [][]time.Duration{{time.Hour, time.Minute}, {time.Second, time.Hour}} {
		h.takes(i, 2, &ann, nil)
		h.members[i].rules(func(c *config.Config) {
			c.Services = append(c.Services, c.Services[0])
			c.Services[1].Name, c.Services[1].Ports = "web", []service.Ports{{Proto: service.TCP, Low: 80, High: 80}}
			for j := range c.Services {
				c.Services[j].MaxFor = longest[j]
			}
		})
	}
	r := h.request(spa.TypeOpen)
	r.For, r.Services = time.Hour, []service.Service{{Name: "ssh"}, {Name: "web"}}
	m := h.members[1]
	m.later(share.Window / 2) // then its second for ssh is over
	h.grants(h.members[0], r)
	lab.Eventually(t, "the outcome to be looked at", func() bool { return m.installed() == 1 })
	got := m.s.firewall.Grants(time.Now())
	if len(got) != 1 || got[0].Service != "web" || time.Until(got[0].Until) > time.Minute {
		t.Errorf("got %v, want web for a minute", got)
	}
}

// TestSharedCloseOfMany: a client that holds more than a floor can name closes all of it at once, at all gateways.
func TestSharedCloseOfMany(t *testing.T) {
	h := newShop(t, 2, "")
	ann := *h.ann
	ann.Allow = []string{"wide", "tcp/1-400"}
	for i, m := range h.members {
		h.takes(i, 2, &ann, nil)
		m.rules(func(c *config.Config) {
			c.Services = append(c.Services, config.NewService("wide", service.Ports{Proto: service.TCP, Low: 1, High: 400}))
			c.Limits.Grants = 2 * share.MaxServices
		})
	}
	const many = share.MaxServices + 1
	r := h.request(spa.TypeOpen)
	for port := range uint16(many) {
		r.ID, r.Time, r.For = spa.NewRequestID(), time.Now(), time.Minute
		r.Services = []service.Service{{Proto: service.TCP, Port: port + 1}}
		h.grants(h.members[0], r)
	}
	h.wantGrants(many)
	r = h.request(spa.TypeClose)
	r.Services = []service.Service{{Name: "wide"}}
	packet := h.seal(r)
	h.members[0].sends(packet)
	h.wantOne(packet, spa.Closed)
	for i, m := range h.members {
		if n := m.grants(); n != 0 {
			t.Errorf("after the answer to a close, member %d has %d grants", i, n)
		}
	}
}

// TestSharedReceiptOfRetry: a gateway that answers a retry names the end of what it holds itself.
func TestSharedReceiptOfRetry(t *testing.T) {
	h := newShop(t, 2, "")
	long, short := h.members[0], h.members[1]
	long.rules(maxFor(time.Hour))
	short.rules(maxFor(time.Minute))
	r := h.request(spa.TypeOpen)
	r.For = time.Hour
	h.grants(long, r)
	h.wantGrants(1)
	for _, m := range h.members {
		r.Time = r.Time.Add(1)
		packet := h.seal(r)
		m.sends(packet)
		got := h.wantOne(packet, spa.Granted)
		end, until := got.Time.Add(got.Services[0].For), m.s.firewall.Grants(time.Now())[0].Until
		if end.After(until) || end.Before(until.Add(-time.Second)) {
			t.Errorf("the receipt says until %v, and the grant ends at %v", end, until)
		}
	}
}

// TestSharedClocksDiffer: a gateway whose clock is so far ahead that nothing is left of what another one grants names
// that gateway and the difference, once in a while; of what is really over it says nothing.
func TestSharedClocksDiffer(t *testing.T) {
	h := newShop(t, 2, "")
	ahead := h.members[1]
	line := "what another one of the site granted is over"
	h.grants(h.members[0], h.request(spa.TypeOpen))
	lab.Eventually(t, "the outcome to be looked at", func() bool { return ahead.installed() == 1 })
	ahead.later(share.Window)
	ahead.s.log = slog.New(slog.NewTextHandler(ahead.said, nil))
	h.restarts(ahead)
	if ahead.said.has(line) {
		t.Errorf("of an old grant: %q", ahead.said.list)
	}
	for range 5 {
		h.grants(h.members[0], h.request(spa.TypeOpen))
	}
	lab.Eventually(t, "the outcomes to be looked at", func() bool { return ahead.installed() == 6 })
	if n := ahead.said.count(line); n != 1 || !ahead.said.has("gateway=lb0 behind_by=1m0s client=ann services=[ssh]") {
		t.Errorf("%d lines, want one: %q", n, ahead.said.list)
	}
}
