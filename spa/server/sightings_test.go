package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
)

// from returns a packet as it arrives from another address.
func from(p capture.Packet, addr string) capture.Packet {
	p.From = netip.AddrPortFrom(netip.MustParseAddr(addr), 40000)
	return p
}

// TestSeen: for each client, the last spent packet and the number of stale ones since.
func TestSeen(t *testing.T) {
	b := newBench(t)
	take := func(p capture.Packet) *sighting {
		b.s.process(context.Background(), p)
		return b.s.seen.of["alice"]
	}
	first := b.packet(-5 * time.Second)
	if w := take(first); w.offset != -5*time.Second || w.stale.packets != 0 || !w.at.Equal(b.at) {
		t.Errorf("after a packet: %+v", w)
	}
	if w := take(from(first, "192.0.2.7")); w.from != netip.MustParseAddr("192.0.2.2") || w.stale.packets != 0 {
		t.Errorf("after a copy from elsewhere: %+v", w)
	}
	for n := range 2 {
		w := take(from(b.packet(time.Hour), "192.0.2.7"))
		want := staleness{packets: n + 1, at: b.at, from: netip.MustParseAddr("192.0.2.7"), offset: time.Hour}
		if w.stale != want || w.offset != -5*time.Second {
			t.Errorf("after %d stale ones: %+v, want %+v", n+1, w, want)
		}
	}
	if w := take(b.packet(0)); w.stale != (staleness{}) || w.offset != 0 {
		t.Errorf("after a good one: %+v", w)
	}
	b.enrol(func(c *keys.Client) { c.Revoked = b.at.UTC() })
	if w := take(b.packet(0)); w.stale != (staleness{}) {
		t.Errorf("after one of a revoked client, which is not stale: %+v", w)
	}
}

// TestLastGrant: a grant is remembered once for each service and address, whatever is denied or closed later: sessions
// may have outlived it.
func TestLastGrant(t *testing.T) {
	b := newBench(t)
	want := func(after string, sources ...string) {
		t.Helper()
		var got []string
		for _, g := range b.s.seen.granted("alice") {
			got = append(got, g.Source.String())
		}
		if !slices.Equal(got, sources) {
			t.Errorf("%s: remembered are those of %v, want %v", after, got, sources)
		}
	}
	want("nothing")
	b.s.process(context.Background(), b.packet(0))
	b.s.process(context.Background(), from(b.packet(0), "192.0.2.3"))
	want("two addresses", "192.0.2.2", "192.0.2.3")
	b.s.process(context.Background(), b.packet(0))
	want("again", "192.0.2.3", "192.0.2.2")
	granted := b.at
	b.at = b.at.Add(time.Second)
	close := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at,
		Services: []service.Service{{Name: "ssh"}}}
	b.s.process(context.Background(), arriving(b.seal(close)))
	b.s.process(context.Background(), b.packet(-time.Second))
	want("a close, and a packet that came too late", "192.0.2.3", "192.0.2.2")
	var st control.Status
	b.s.seen.tell(&st)
	if last := st.LastGrant; last == nil || !last.Since.Equal(granted) ||
		last.Source != netip.MustParseAddr("192.0.2.2") || !last.Until.Equal(granted.Add(30*time.Second)) {
		t.Errorf("the last grant is %+v", last)
	}
}

// TestSeenAreTold: clients are listed by their latest packet, newest first, and no more of them than fit into an
// answer.
func TestSeenAreTold(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := newSightings()
	s.of["early"] = &sighting{at: at}
	s.of["late"] = &sighting{at: at.Add(time.Minute)}
	s.of["stale"] = &sighting{stale: staleness{packets: 1, at: at.Add(time.Hour)}}
	s.of["also early"] = &sighting{at: at}
	var st control.Status
	s.tell(&st)
	var got []string
	for _, seen := range st.Seen {
		got = append(got, seen.Client)
	}
	if !slices.Equal(got, []string{"stale", "late", "also early", "early"}) || st.MoreSeen != 0 || st.LastGrant != nil {
		t.Errorf("got %v, %d more, %+v", got, st.MoreSeen, st.LastGrant)
	}
	for n := range mostSeen {
		s.of[string(rune('a'+n%26))+time.Duration(n).String()] = &sighting{at: at.Add(-time.Minute)}
	}
	if s.tell(&st); len(st.Seen) != mostSeen || st.MoreSeen != 4 || st.Seen[0].Client != "stale" {
		t.Errorf("%d are listed, %d more", len(st.Seen), st.MoreSeen)
	}
}

// TestDecisionOf: watchers see how far a stale packet's clock is off, the ends of granted services only, and the cause
// of a denial.
func TestDecisionOf(t *testing.T) {
	b := newBench(t)
	decided := func(p capture.Packet) control.Decision {
		b.arrive(p)
		return feed.DecisionOf(b.event)
	}
	if d := decided(b.packet(-time.Hour)); d.Ahead != -3600 || d.Client != "alice" || d.Command != "" || d.Until != nil {
		t.Errorf("a stale one: %+v", d)
	}
	good := b.packet(0)
	if d := decided(good); d.Ahead != 0 || d.Command != "open" || !slices.Equal(d.Services, []string{"ssh"}) ||
		len(d.Until) != 1 || !d.Until[0].Equal(b.at.Add(30*time.Second)) || d.Reason != "" {
		t.Errorf("a good one: %+v", d)
	}
	if d := decided(from(good, "192.0.2.3")); !d.Copied || d.Verdict != audit.Unspent.String() || d.Until != nil ||
		d.Reason == "" {
		t.Errorf("a copy: %+v", d)
	}
	b.ask("nothing")
	if d := feed.DecisionOf(b.event); d.Reason != b.event.Err.Error() || d.Until != nil ||
		!slices.Equal(d.Services, []string{"nothing"}) {
		t.Errorf("a service that is not there: %+v", d)
	}
	b.take(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at,
		Services: []service.Service{{Name: "ssh"}}})
	if d := feed.DecisionOf(b.event); d.Verdict != "closed" || d.Until != nil {
		t.Errorf("a close: %+v", d)
	}
	for verdict, want := range map[audit.Verdict]string{audit.Failed: "with what was tried: the cause",
		audit.Unspent: "the cause"} {
		b.event.Err = fmt.Errorf("with what was tried: %w", errors.New("the cause"))
		if d := feed.DecisionOf(b.event.As(verdict, b.event.Err)); d.Reason != want {
			t.Errorf("%v: the reason is %q, want %q", verdict, d.Reason, want)
		}
	}
	if d := feed.DecisionOf(audit.Event{Time: b.at, Err: &spa.Refused{Err: errors.New("of no time")}}); d.Ahead != 0 {
		t.Errorf("refused before its time is known: %+v", d)
	}
}
