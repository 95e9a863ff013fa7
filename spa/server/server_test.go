package server

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestStopDecidesWhatIsSpent: a packet in hand when the server is stopped is decided as usual: a failure would be the
// outcome of every later retry.
func TestStopDecidesWhatIsSpent(t *testing.T) {
	s, sender := newLine(t)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	event := s.handle(ctx, arriving(sealed(t, sender)))
	if event.Verdict != audit.Granted || event.Receipt.Status != spa.Granted {
		t.Errorf("got %v (%v), want it granted", event.Verdict, event.Err)
	}
}

// TestOnlySpentHasAReceipt: a packet that was not spent has no receipt to send.
func TestOnlySpentHasAReceipt(t *testing.T) {
	s, sender := newLine(t)
	packet := arriving(sealed(t, sender))
	if event := s.handle(context.Background(), packet); event.Receipt.Status != spa.Granted {
		t.Fatalf("got %v (%v), want it granted", event.Verdict, event.Err)
	}
	event := s.handle(context.Background(), packet)
	if event.Verdict != audit.Unspent || event.Verdict.Spent() || event.Receipt.Status != 0 {
		t.Errorf("a copy: got %v and receipt %v, want neither spent nor a receipt", event.Verdict, event.Receipt.Status)
	}
	if event.Fault {
		t.Errorf("a copy counts as a fault of the journal: %v", event.Err)
	}
	s.journal.Close()
	if event := s.handle(context.Background(), arriving(sealed(t, sender))); !event.Fault || event.Receipt.Status != 0 {
		t.Errorf("without a journal: got %v (%v), want a fault and no receipt", event.Verdict, event.Err)
	}
}

// TestRepeatAfterClockSetBack: a repeated receipt never states more time than the first: the kernel's timer was not set
// back.
func TestRepeatAfterClockSetBack(t *testing.T) {
	s, sender := newLine(t)
	now := time.Now()
	request := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: now,
		Services: []service.Service{{Name: "ssh"}}}
	for i, at := range []time.Time{now, now.Add(-20 * time.Second), now.Add(10 * time.Second)} {
		s.now = func() time.Time { return at.Round(0) } // as after a clock step: without the monotonic time
		packet := lab.Value(spa.Seal(request, sender))(t)
		event := s.handle(t.Context(), arriving(packet))
		want := []time.Duration{30 * time.Second, 30 * time.Second, 20 * time.Second}[i]
		if event.Receipt.Status != spa.Granted || event.Receipt.Services[0].For.Round(time.Second) != want {
			t.Errorf("try %d: got %v (%v) and %+v, want %v", i+1, event.Verdict, event.Err, event.Receipt, want)
		}
	}
}

// TestRetryOfUnsettled: if the server was killed between spending a packet and recording its outcome, a retry is
// decided again, and opens no longer than the first packet would have.
func TestRetryOfUnsettled(t *testing.T) {
	b := newBench(t)
	r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at, Services: []service.Service{{Name: "ssh"}}}
	p := arriving(b.seal(r))
	knock := lab.Value(spa.Open(p.Data, &b.s.identity, b.s.clients, b.at))(t)
	_, err := b.s.journal.Admit(entry(&knock, p.From.Addr()), b.at)
	lab.Must(t, err)
	end := b.at.Add(30 * time.Second)
	b.at = b.at.Add(20 * time.Second)
	r.Time = b.at
	b.take(r)
	if got := b.at.Add(b.event.Receipt.Services[0].For); b.event.Verdict != audit.Granted || got.After(end) {
		t.Errorf("got %v until %v, want no later than %v", b.event.Verdict, got, end)
	}
}

// TestRetryIsAnsweredAsTheFirst: each retry of a refused request is refused for the same reason.
func TestRetryIsAnsweredAsTheFirst(t *testing.T) {
	for status, deny := range denials {
		b := newBench(t)
		deny(b)
		request := b.event.Knock.Request
		request.Time = request.Time.Add(1)
		if b.take(request); b.event.Receipt.Status != status {
			t.Errorf("%v: a retry is answered with %v", status, b.event.Receipt.Status)
		}
	}
}

// TestOutcomeThatCannotBeKept: an outcome that cannot be recorded is logged, unless the packet was not spent.
func TestOutcomeThatCannotBeKept(t *testing.T) {
	for name, test := range map[string]struct {
		spoil   func(b *bench)
		receipt spa.Receipt
		said    bool
	}{
		"kept":                      {func(b *bench) {}, spa.Receipt{Status: spa.ReasonExpired}, false},
		"the journal is closed":     {func(b *bench) { b.s.journal.Close() }, spa.Receipt{Status: spa.ReasonExpired}, true},
		"a receipt that is invalid": {func(b *bench) {}, spa.Receipt{}, true},
	} {
		b, said := newBench(t), &lines{}
		b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
		r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at, Services: []service.Service{{Name: "ssh"}}}
		p := arriving(b.seal(r))
		knock := lab.Value(spa.Open(p.Data, &b.s.identity, b.s.clients, b.at))(t)
		_, err := b.s.journal.Admit(entry(&knock, p.From.Addr()), b.at)
		lab.Must(t, err)
		test.spoil(b)
		event := audit.Event{Time: b.at, From: p.From}.Of(&knock)
		b.s.conclude(event, audit.Denied, test.receipt)
		if got := said.has("could not record the outcome"); got != test.said {
			t.Errorf("%s: reported as not recorded: %v", name, got)
		}
	}
}

// TestSourceIsOnItsLink: a link-local address is granted only on the link that it knocks from, because another machine
// may have it on every other link; other addresses are granted on all links.
func TestSourceIsOnItsLink(t *testing.T) {
	for from, want := range map[string]string{"fe80::2": "fe80::2%7", "2001:db8::2": "2001:db8::2",
		"192.0.2.2": "192.0.2.2"} {
		b := newBench(t)
		p := b.packet(0)
		p.From, p.Interface = netip.AddrPortFrom(netip.MustParseAddr(from), 40000), 7
		b.arrive(p)
		if held := b.s.firewall.Grants(b.at); len(held) != 1 || held[0].Source.String() != want {
			t.Errorf("from %s: %v holds %v, want it at %s", from, b.event.Err, held, want)
		}
	}
}

// TestFailureIsNoDenial: an error that is not a reason of the policy is reported as a failure.
func TestFailureIsNoDenial(t *testing.T) {
	if got := reasonFor(errors.New("no reason of the policy's")); got != spa.ReasonFailed {
		t.Errorf("got %v", got)
	}
}

// TestClosedIsToldOnce: watchers see once that a grant was closed, and do not see its expiry as well.
func TestClosedIsToldOnce(t *testing.T) {
	b := newBench(t)
	w, _ := b.s.feed.Join()
	defer b.s.feed.Leave(w)
	b.s.process(context.Background(), b.packet(0))
	b.at = b.at.Add(time.Second)
	b.s.process(context.Background(), arriving(b.seal(spa.Request{
		ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at, Services: []service.Service{{Name: "ssh"}},
	})))
	b.s.feed.TellEnded(b.at.Add(time.Hour))
	var told []string
	for len(w.Lines) > 0 {
		told = append(told, (<-w.Lines).Decision.Verdict)
	}
	if !slices.Equal(told, []string{"granted", "closed"}) {
		t.Errorf("watchers got %v", told)
	}
}

// TestCloseBesideAnother: a client's grants at another address do not keep open what it closes at this one.
func TestCloseBesideAnother(t *testing.T) {
	f := newFinal(t, 0, 0)
	f.open("192.0.2.3", "admin") // tcp/22 and tcp/8443
	f.rule(func(c *config.Config) {
		i := slices.IndexFunc(c.Services, func(s config.Service) bool { return s.Name == "admin" })
		c.Services[i].Ports = parsed(t, "tcp/22")
	})
	f.open("192.0.2.2", "admin")
	c := f.command("alice", spa.TypeClose, f.at, "tcp/22")
	f.deliver(f.packet(c, f.at, "192.0.2.2"), f.at)
	for _, g := range f.s.firewall.Grants(f.at) {
		if g.Source == netip.MustParseAddr("192.0.2.2") {
			t.Errorf("held on: %v", g)
		}
	}
}

// TestEachIsRecorded: the decision about a packet is in the audit log and in what is known of its client; noise belongs
// to no client.
func TestEachIsRecorded(t *testing.T) {
	b := newBench(t)
	b.s.process(context.Background(), b.packet(0))
	if verdict, _ := b.last(); verdict != "granted" {
		t.Errorf("the audit log has %q", verdict)
	}
	if w := b.s.seen.of["alice"]; w == nil || w.from != netip.MustParseAddr("192.0.2.2") || !w.at.Equal(b.at) {
		t.Errorf("known of alice: %+v", w)
	}
	b.s.process(context.Background(), arriving(make([]byte, 200)))
	if b.s.audit.Counts()["unopened: "+spa.ErrGate.Error()] != 1 || len(b.s.seen.of) != 1 {
		t.Errorf("after noise: %v, and %d clients are known", b.s.audit.Counts(), len(b.s.seen.of))
	}
}
