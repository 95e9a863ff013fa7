package server

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/capture"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share/standin"
	"sallyport/spa/lab"
)

// outbox keeps the receipts that a server sends, which may come later than the packet's processing ends.
type outbox struct {
	mu  sync.Mutex
	all [][]byte
}

func (o *outbox) Send(_ capture.Packet, payload []byte, _ bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, bytes.Clone(payload))
	return nil
}

func (o *outbox) Close() error { return nil }

func (o *outbox) sent() [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all
}

// A siteMember is a gateway that shares an address, and runs except for its sniffer.
type siteMember struct {
	*fleetSite
	out   *outbox
	agent *standin.Agent
	stop  func()
}

// A shop is a site: gateways that share an address, and their store.
type shop struct {
	testing.TB
	store   *standin.Store
	members []*siteMember
	ann     *keys.Client
	sender  spa.Sender
}

func newShop(t *testing.T, n int, more string) *shop {
	t.Helper()
	lab.NeedRoot(t)
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	seal, gate := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, keys.NewGateKey()
	h := &shop{TB: t, store: standin.New(), ann: fleetClient("ann")}
	for i := range n {
		m := &siteMember{out: &outbox{}, fleetSite: newMemberOf(t, "www", seal, gate,
			fmt.Sprintf("gateway = \"lb%d\"\n%s", i, more))}
		m.offer(m.sealed(m.seal, fmt.Sprintf("lb%d", i), m.to, 1, m.contents([]*keys.Client{h.ann})))
		m.s.responder = m.out
		m.restart()
		lab.Must(t, m.s.openShare())
		h.members = append(h.members, m)
		h.start(m)
	}
	h.sender = h.members[0].fleetSite.sender(h.ann)
	h.ready()
	return h
}

// start runs a member and its agent.
func (h *shop) start(m *siteMember) {
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { m.s.share(ctx) })
	m.stop = sync.OnceFunc(func() { cancel(); run.Wait() })
	h.Cleanup(m.stop)
	h.connect(m)
}

func (h *shop) connect(m *siteMember) {
	h.Helper()
	m.agent = lab.Value(h.store.Connect(m.s.config.Fleet.Share))(h)
	h.Cleanup(func() { m.agent.Close() })
}

// ready waits until all members can act.
func (h *shop) ready() {
	h.Helper()
	lab.Eventually(h, "the members to be ready", func() bool {
		for _, m := range h.members {
			if !m.member().Alive() {
				return false
			}
		}
		return h.store.Members() == len(h.members)
	})
}

func (m *siteMember) member() interface{ Alive() bool } {
	m.s.line.Lock()
	defer m.s.line.Unlock()
	return m.s.shared.member
}

func (h *shop) request(kind spa.Type) spa.Request {
	return spa.Request{ID: spa.NewRequestID(), Type: kind, Time: time.Now(), Services: []service.Service{{Name: "ssh"}}}
}

func (h *shop) seal(r spa.Request) []byte {
	h.Helper()
	return lab.Value(spa.Seal(r, h.sender))(h)
}

// sends delivers a packet to a member.
func (m *siteMember) sends(packet []byte) {
	m.s.process(context.Background(), arriving(bytes.Clone(packet)))
}

// grants returns how many grants a member has in force.
func (m *siteMember) grants() int { return len(m.s.firewall.Grants(time.Now())) }

// receipts returns the receipts for a packet, of all members.
func (h *shop) receipts(packet []byte) []spa.Receipt {
	var all []spa.Receipt
	for _, m := range h.members {
		for _, text := range m.out.sent() {
			if r, err := spa.OpenReceipt(text, packet, h.sender); err == nil {
				all = append(all, r)
			}
		}
	}
	return all
}

// wantOne waits for the one receipt of a packet.
func (h *shop) wantOne(packet []byte, want spa.Status) spa.Receipt {
	h.Helper()
	lab.Eventually(h, "a receipt", func() bool { return len(h.receipts(packet)) > 0 })
	got := h.receipts(packet)
	if len(got) != 1 || got[0].Status != want {
		h.Fatalf("got %+v, want one with %v", got, want)
	}
	return got[0]
}

func (h *shop) wantGrants(n int) {
	h.Helper()
	for i, m := range h.members {
		lab.Eventually(h, fmt.Sprintf("member %d to have %d grants", i, n), func() bool { return m.grants() == n })
	}
}

// opens opens ssh through a member.
func (h *shop) opens(m *siteMember) spa.Request {
	h.Helper()
	r := h.request(spa.TypeOpen)
	packet := h.seal(r)
	m.sends(packet)
	h.wantOne(packet, spa.Granted)
	h.wantGrants(1)
	return r
}

// Eventually waits until each member is so.
func (h *shop) Eventually(what string, is func(m *siteMember) bool) {
	h.Helper()
	for _, m := range h.members {
		lab.Eventually(h, what, func() bool { return is(m) })
	}
}
