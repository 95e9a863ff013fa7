package server

import (
	"context"
	"testing"

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
