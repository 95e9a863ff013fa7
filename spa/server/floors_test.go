package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/server/control"
)

// becomes writes alice's file, and has the server take it over.
func (b *bench) becomes(change func(c *keys.Client)) {
	b.Helper()
	b.s.dir = b.s.config.Dir
	c := *b.client
	change(&c)
	if err := keys.WriteClient(b.s.dir, &c, false); err != nil {
		b.Fatal(err)
	}
	b.s.reloadClient(b.Context(), "alice")
}

// TestFloors: what was taken from a client is not opened by a packet of before, also when it is given
// back a moment later, and whether or not it was held.
func TestFloors(t *testing.T) {
	for name, take := range map[string]func(b *bench){
		"revoked, nothing held": func(b *bench) { b.s.revoke(b.Context(), control.Request{Client: "alice"}) },
		"taken away, nothing held": func(b *bench) {
			b.becomes(func(c *keys.Client) { c.Allow = []string{"web"} })
		},
		"held, from where it may not be": func(b *bench) {
			b.s.take(context.Background(), b.packet(0))
			b.becomes(func(c *keys.Client) { c.Deny = within("192.0.2.0/24") })
		},
	} {
		b := newBench(t)
		held := b.packet(-time.Second)
		take(b)
		b.becomes(func(*keys.Client) {})
		b.arrive(held)
		if got := b.event.Receipt.Status; got != spa.ReasonSuperseded {
			t.Errorf("%s: a packet of before: %v", name, got)
		}
	}
}

// TestSightingsAreBounded: a client is not remembered with all that it was ever given, and a stale packet,
// which may be a copy, says nothing of its clock that counts.
func TestSightingsAreBounded(t *testing.T) {
	w := &sighting{}
	for i := range 2 * mostGranted {
		w.remember([]firewall.Grant{{Service: fmt.Sprint(i)}})
	}
	if len(w.granted) != mostGranted || w.granted[0].Service != fmt.Sprint(mostGranted) {
		t.Errorf("%d are remembered, the first %v", len(w.granted), w.granted[0])
	}
	b := newBench(t)
	b.s.take(context.Background(), b.packet(0))
	b.s.take(context.Background(), b.packet(40*time.Second))
	if d := b.s.seen.offset("alice"); d != 0 {
		t.Errorf("the clock is ahead by %v", d)
	}
}
