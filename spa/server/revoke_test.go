package server

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/server/control"
)

// TestRevokeWithoutJournal: grants end, and it is said that packets on their way may open them again.
func TestRevokeWithoutJournal(t *testing.T) {
	for _, r := range []control.Request{{Client: "alice"}, {Source: netip.MustParseAddr("192.0.2.2")}} {
		b := newBench(t)
		b.s.take(context.Background(), b.packet(0))
		b.s.journal.Close()
		_, err := b.s.revoke(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), "all the same: 1") {
			t.Errorf("got %v", err)
		}
		if held := b.s.firewall.Grants(b.at); len(held) != 0 {
			t.Errorf("still held: %v", held)
		}
	}
}

// TestCutOfGone: of a client whose file is gone sessions are looked for, and of one that was never there not.
func TestCutOfGone(t *testing.T) {
	b := newBench(t)
	b.s.take(context.Background(), b.packet(0))
	if err := os.Remove(filepath.Join(b.s.config.Dir, "alice.toml")); err != nil {
		t.Fatal(err)
	}
	b.s.reloadClient(t.Context(), "alice")
	for client, want := range map[string]string{"alice": "nothing is open for alice", "nobody": `there is no client "nobody"`} {
		_, err := b.s.revoke(t.Context(), control.Request{Client: client, Cut: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestRevokeMapped: an address counts in each way to write it, also for packets on their way.
func TestRevokeMapped(t *testing.T) {
	b := newBench(t)
	held := b.packet(-time.Second)
	b.s.take(context.Background(), b.packet(0))
	if r, err := b.s.revoke(t.Context(), control.Request{Source: netip.MustParseAddr("::ffff:192.0.2.2")}); err != nil || len(r.Ended) != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
	b.arrive(held)
	if got := b.event.Receipt.Status; got != spa.ReasonSuperseded {
		t.Errorf("a packet of before: %v", got)
	}
}

// TestRevokeOneOfTwo: a revocation that names nobody, or both, ends nothing.
func TestRevokeOneOfTwo(t *testing.T) {
	b := newBench(t)
	b.s.take(context.Background(), b.packet(0))
	for _, r := range []control.Request{{}, {Client: "alice", Source: netip.MustParseAddr("192.0.2.2")}} {
		if got, err := b.s.revoke(t.Context(), r); err == nil {
			t.Errorf("%+v: got %+v", r, got)
		}
	}
	if held := b.s.firewall.Grants(b.at); len(held) != 1 {
		t.Errorf("held: %v", held)
	}
}
