package server

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/server/control"
)

// stating returns a packet that states its source.
func (b *bench) stating(stamp time.Duration, source string) capture.Packet {
	b.Helper()
	r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at.Add(stamp),
		Services: []service.Service{{Name: "ssh"}}}
	if source != "" {
		r.Source = netip.MustParseAddr(source)
	}
	return arriving(b.seal(r))
}

// wantNothingSpent checks that no packet was spent or is known of its client.
func (b *bench) wantNothingSpent() {
	b.Helper()
	var st control.Status
	if b.s.seen.tell(&st); len(st.Seen) != 0 {
		b.Errorf("status shows %+v", st.Seen)
	}
	for what := range b.s.audit.Counts() {
		if what[:8] != "unopened" && what[:8] != "unspent:" && what[:8] != "elsewher" {
			b.Errorf("recorded as %s", what)
		}
	}
	if keys := b.s.journal.Status(); keys.Live != 0 || keys.Keys != 0 {
		b.Errorf("the journal holds %d nonces of %d keys", keys.Live, keys.Keys)
	}
}

// TestTooEarly: after a start with a floor, a client learns when it may knock, once a second, if it states its source
// and the packet comes from there. The packet is not spent, recorded or charged, and no other unspent packet is
// answered.
func TestTooEarly(t *testing.T) {
	b := newBench(t)
	b.journal("new", 4096)
	floor := b.s.journal.Status().Floor
	told := func(p capture.Packet) bool {
		t.Helper()
		event := b.s.handle(context.Background(), p)
		if event.Verdict.Spent() {
			t.Fatalf("a packet was spent: %v", event.Verdict)
		}
		answered := b.s.tooEarly(&event)
		if r := event.Receipt; answered != (r.Status == spa.ReasonTooEarly) ||
			answered && (!r.Again.Equal(floor) || !r.Time.Equal(b.at)) {
			t.Errorf("answered %v, with %+v", answered, r)
		}
		return answered
	}
	first := b.stating(0, "192.0.2.2")
	if !told(first) {
		t.Error("a client that states its source gets no answer")
	}
	if told(first) || told(b.stating(0, "192.0.2.2")) {
		t.Error("answered twice in a second")
	}
	b.at = b.at.Add(earlyPause)
	if told(b.stating(0, "")) {
		t.Error("answered without a stated source: a copy would be answered to its sender")
	}
	moved := b.stating(0, "192.0.2.2")
	moved.From = netip.MustParseAddrPort("192.0.2.3:40000")
	if told(moved) || told(b.stating(0, "192.0.2.3")) {
		t.Error("answered a packet that comes from another address than it states")
	}
	if told(b.stating(-31*time.Second, "192.0.2.2")) {
		t.Error("answered a stale packet")
	}
	if !told(b.stating(0, "192.0.2.2")) {
		t.Error("not answered again after a second: something else took its turn")
	}
	b.wantNothingSpent()

	b.at = floor
	b.arrive(b.stating(1, "192.0.2.2"))
	if b.event.Verdict != audit.Granted {
		t.Fatalf("after the floor: %v", b.event.Err)
	}
	copied := b.stating(2, "192.0.2.2")
	b.arrive(copied)
	if told(copied) {
		t.Error("a copy of what was spent is answered")
	}
}

// TestContinued: a command that continues longer than its id is remembered runs once: for the first of its packets that
// arrives, and not for a later one, even if all packets in between were lost. It does not open what was closed since it
// began.
func TestContinued(t *testing.T) {
	b := newBench(t)
	r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at, Services: []service.Service{{Name: "ssh"}}}
	began := b.at
	later := func(d time.Duration) {
		b.at = began.Add(d)
		r.Time, r.First = b.at, began
		b.take(r)
	}
	later(5 * time.Minute)
	if b.event.Verdict != audit.Granted {
		t.Fatalf("the first that comes: %v, %v", b.event.Verdict, b.event.Err)
	}
	until := b.event.Receipt.Time.Add(b.event.Receipt.Services[0].For)
	later(5*time.Minute + 20*time.Second)
	if end := b.event.Receipt.Time.Add(b.event.Receipt.Services[0].For); b.event.Verdict != audit.Repeated ||
		!end.Equal(until) {
		t.Errorf("a retry: %v, until %v, first until %v", b.event.Verdict, end, until)
	}
	later(20 * time.Minute)
	if b.event.Verdict.Spent() {
		t.Errorf("a packet that comes when the id is forgotten: %v", b.event.Verdict)
	}

	r.ID, began = spa.NewRequestID(), b.at
	b.at = b.at.Add(time.Second)
	b.take(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at, Services: r.Services})
	later(40 * time.Second)
	if b.event.Receipt.Status != spa.ReasonSuperseded {
		t.Errorf("closed since it began: %v, %v", b.event.Verdict, b.event.Err)
	}
}
