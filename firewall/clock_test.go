package firewall

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"sallyport/spa"
)

// recording is a backend that keeps what it was told last.
type recording struct {
	*dryRun
	left map[element]time.Duration
}

func (r *recording) set(ls []lease) error {
	for _, l := range ls {
		r.left[l.element] = l.left
	}
	return nil
}

func (r *recording) load(p plan) error {
	clear(r.left)
	return r.set(p.leases)
}

// setClock is t by a wall clock that was set by d before: time.Time has its wall part in
// the first word, the seconds above 30 bits of nanoseconds.
func setClock(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	set := at
	*(*uint64)(unsafe.Pointer(&set)) += uint64(d/time.Second) << 30
	if set.Sub(at) != 0 || set.Round(0).Sub(at.Round(0)) != d {
		t.Fatalf("%v is not %v by a clock that was set by %v", set, at, d)
	}
	return set
}

// TestClockIsSet: the end of a grant may have come without a monotonic reading, and the
// wall clock be set while it lives.
func TestClockIsSet(t *testing.T) {
	f, now := dry(t, 10), time.Now()
	kernel := &recording{newDryRun(f.log), make(map[element]time.Duration)}
	f.backend = kernel
	if err := f.Load(t.Context(), 0, now); err != nil {
		t.Fatal(err)
	}
	g := Grant{
		Client: "alice", Source: netip.MustParseAddr("192.0.2.2"), Ports: []spa.Ports{{Proto: spa.TCP, Low: 22, High: 22}},
		Until: now.Add(time.Minute).Round(0),
	}
	if err := f.Grant(t.Context(), []Grant{g}, now); err != nil {
		t.Fatal(err)
	}
	const want = 50 * time.Second
	left := func(after string) {
		t.Helper()
		if got := kernel.left[element{source: g.Source, proto: spa.TCP, port: 22}]; got != want {
			t.Errorf("%v are left %s, want %v", got, after, want)
		}
	}
	back := setClock(t, now.Add(10*time.Second), -time.Hour)
	if err := f.putBack(back); err != nil {
		t.Fatal(err)
	}
	left("after a put-back")
	g.Until = back.Add(want - time.Second).Round(0)
	if err := f.Grant(t.Context(), []Grant{g}, back); err != nil {
		t.Fatal(err)
	}
	left("after a refresh")
	forward := setClock(t, now.Add(10*time.Second), time.Hour)
	if gs, err := f.Revoke(t.Context(), Match{Client: "alice"}, forward); len(gs) != 1 || err != nil {
		t.Errorf("got %v, %v from a clock set forward, want alice's", gs, err)
	}
}

// TestClockIsSetAfterARestart: nor has an end that comes from the ledger to do with the
// wall clock any more.
func TestClockIsSetAfterARestart(t *testing.T) {
	l, now := &ledger{bootID: "this boot"}, time.Now()
	h := &holding{client: "alice", source: netip.MustParseAddr("192.0.2.2"), ports: []spa.Ports{{Proto: spa.TCP, Low: 22, High: 22}}}
	for _, test := range []struct {
		name       string
		wall, boot time.Duration
	}{
		{"same", time.Minute, time.Minute},
		{"set back while down", time.Hour, time.Minute},
		{"set forward while down", time.Minute, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r [recordSize]byte
			l.encode(&r, h, now.Add(test.wall), test.boot)
			got, ok := l.decode(r[:], 0, now)
			if !ok {
				t.Fatal("no grant")
			}
			for _, d := range []time.Duration{-time.Hour, time.Hour} {
				left := got.until.Sub(setClock(t, now.Add(10*time.Second), d))
				if left != 50*time.Second {
					t.Errorf("%v are left after the clock was set by %v, want 50s", left, d)
				}
			}
		})
	}
}
