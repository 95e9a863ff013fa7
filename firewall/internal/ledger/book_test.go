package ledger

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestManyHoldersOfOneElement: holders that come and go leave no trace in the lists.
func TestManyHoldersOfOneElement(t *testing.T) {
	book, now := NewBook(func(int) {}), time.Now()
	ssh := guard.Element{Source: netip.MustParseAddr("192.0.2.2"), Proto: service.TCP, Port: 22}
	for i := range 1000 {
		book.Add(&Holding{Client: string(rune('a' + i%26)), Service: string(rune('A' + i/26)), Source: ssh.Source,
			Ports: []service.Ports{ports("tcp/22")}, Until: now.Add(time.Duration(1+i) * time.Second), Slot: i})
	}
	for book.Len() > 10 {
		for _, h := range book.Over(now.Add(990*time.Second), 100) {
			book.Remove(h)
		}
	}
	tenants := book.elements[ssh]
	if live := len(tenants.holders) - tenants.ended; live != 10 || len(tenants.holders) > 20 {
		t.Errorf("%d of %d in the list live, want 10 of at most 20", live, len(tenants.holders))
	}
	for _, h := range book.Over(now.Add(time.Hour), 100) {
		book.Remove(h)
	}
	if n := len(book.byKey) + len(book.byClient) + len(book.elements) + len(book.due); n != 0 {
		t.Errorf("%d traces are left of holders that have left", n)
	}
}

// TestClockIsSetAfterARestart: setting the wall clock after a restart does not move an end that came from the ledger.
func TestClockIsSetAfterARestart(t *testing.T) {
	l, now := &Ledger{bootID: "this boot"}, time.Now()
	h := &Holding{Client: "alice", Source: netip.MustParseAddr("192.0.2.2"),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}}
	for _, test := range []struct {
		name       string
		wall, boot time.Duration
	}{
		{"same", time.Minute, time.Minute},
		{"set back while down", time.Hour, time.Minute},
		{"set forward while down", time.Minute, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r [RecordSize]byte
			l.encode(&r, h, now.Add(test.wall), test.boot)
			got, ok := l.decode(r[:], 0, now)
			if !ok {
				t.Fatal("no grant")
			}
			for _, d := range []time.Duration{-time.Hour, time.Hour} {
				left := got.Until.Sub(lab.SetClock(t, now.Add(10*time.Second), d))
				if left != 50*time.Second {
					t.Errorf("%v are left after the clock was set by %v, want 50s", left, d)
				}
			}
		})
	}
}
