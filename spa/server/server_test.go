package server

import (
	"context"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/audit"
)

// TestStopDecidesWhatIsSpent: a packet in hand when the server is asked to stop is decided as ever: a
// failure would be its outcome for every retry to come.
func TestStopDecidesWhatIsSpent(t *testing.T) {
	s, sender := newLine(t)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	event := s.handle(ctx, arriving(sealed(t, sender)))
	if event.Verdict != audit.Granted || event.Receipt.Status != spa.Granted {
		t.Errorf("got %v (%v), want it granted", event.Verdict, event.Err)
	}
}

// TestOnlySpentHasAReceipt: nothing is there to be sent for a packet that was not spent.
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
}

// TestRepeatAfterClockSetBack: a receipt that is sent again never says more than the first did: the
// kernel's clock was not set back.
func TestRepeatAfterClockSetBack(t *testing.T) {
	s, sender := newLine(t)
	now := time.Now()
	request := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: now, Services: []spa.Service{{Name: "ssh"}}}
	for i, at := range []time.Time{now, now.Add(-20 * time.Second), now.Add(10 * time.Second)} {
		s.now = func() time.Time { return at.Round(0) } // as it is after a step: without what passed meanwhile
		packet, err := spa.Seal(request, sender)
		if err != nil {
			t.Fatal(err)
		}
		event := s.handle(t.Context(), arriving(packet))
		want := []time.Duration{30 * time.Second, 30 * time.Second, 20 * time.Second}[i]
		if event.Receipt.Status != spa.Granted || event.Receipt.Services[0].For.Round(time.Second) != want {
			t.Errorf("try %d: got %v (%v) and %+v, want %v", i+1, event.Verdict, event.Err, event.Receipt, want)
		}
	}
}

// TestRetryOfUnsettled: where the server was killed between spending a packet and its outcome, a retry is
// decided anew, and opens no longer than the first would have.
func TestRetryOfUnsettled(t *testing.T) {
	b := newBench(t)
	r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at, Services: []spa.Service{{Name: "ssh"}}}
	p := arriving(b.seal(r))
	knock, err := spa.Open(p.Data, &b.s.identity, b.s.clients, b.at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.s.journal.Admit(entry(&knock, p.From.Addr()), b.at); err != nil {
		t.Fatal(err)
	}
	end := b.at.Add(30 * time.Second)
	b.at = b.at.Add(20 * time.Second)
	r.Time = b.at
	b.take(r)
	if got := b.at.Add(b.event.Receipt.Services[0].For); b.event.Verdict != audit.Granted || got.After(end) {
		t.Errorf("got %v until %v, want no later than %v", b.event.Verdict, got, end)
	}
}
