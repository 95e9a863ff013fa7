package replay

import (
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestRetuneRefusesWhatWasStale: a longer window does not make a packet fresh that was too old before, here a later
// packet of a request whose first is forgotten, even after a restart.
func TestRetuneRefusesWhatWasStale(t *testing.T) {
	j, d := fresh(t, config())
	first := packet(1, 1, start)
	late := first
	late.Nonce, late.Stamp = packet(1, 2, start).Nonce, after(25*time.Second)
	admit(t, j, first, start, nil)
	now := after(70 * time.Second)
	admit(t, j, packet(1, 3, now), now, nil) // the first is forgotten
	lab.Must(t, j.Retune(10*time.Minute, 256, now))
	admit(t, j, late, now, ErrFloor)
	admit(t, j, packet(1, 4, now.Add(-29*time.Second)), now, nil)
	admit(t, j, packet(1, 5, now.Add(9*time.Minute)), now, nil)
	longer := config()
	longer.Window = 10 * time.Minute
	again := reopen(t, copyOf(d), longer, now)
	admit(t, again, late, now, ErrFloor)
	admit(t, again, packet(1, 3, now), now, ErrSpent)
}

// TestLongerWindowAfterRestart: a restart with a longer window makes no more fresh than Retune does; the first start,
// before which nothing was admitted, refuses nothing because of it.
func TestLongerWindowAfterRestart(t *testing.T) {
	j, d := fresh(t, config())
	first := packet(1, 1, start)
	late := first
	late.Nonce, late.Stamp = packet(1, 2, start).Nonce, after(25*time.Second)
	admit(t, j, first, start, nil)
	now := after(70 * time.Second)
	admit(t, j, packet(1, 3, now), now, nil) // the first is forgotten
	longer := config()
	longer.Window = 10 * time.Minute
	again := reopen(t, copyOf(d), longer, now)
	admit(t, again, late, now, ErrFloor)
	admit(t, again, packet(1, 4, now.Add(-29*time.Second)), now, nil)
	admit(t, again, packet(1, 3, now), now, ErrSpent)

	_, d = fresh(t, config())
	created := newStore(d)
	lab.Must(t, created.readHeader())
	h := created.header
	h.Window = 0
	lab.Must(t, created.commit(h))
	admit(t, reopen(t, d, config(), start), packet(1, 1, start.Add(-29*time.Second)), start, nil)
}

// TestRetuneKeepsWhatIsSpent: a shorter window forgets nothing, and counts by the new limit.
func TestRetuneKeepsWhatIsSpent(t *testing.T) {
	j, _ := fresh(t, config())
	for n := range 10 {
		admit(t, j, packet(1, n, after(time.Duration(n)*time.Millisecond)), start, nil)
	}
	lab.Must(t, j.Retune(5*time.Second, 10, start))
	if s := j.Status(); !s.Floor.IsZero() {
		t.Errorf("a shorter window has made a floor: %v", s.Floor)
	}
	admit(t, j, packet(1, 0, start), start, ErrSpent)
	admit(t, j, packet(1, 11, after(6*time.Second)), start, errStale)
	admit(t, j, packet(1, 11, start), start, ErrFull)
	lab.Must(t, j.Retune(5*time.Second, 11, start))
	admit(t, j, packet(1, 11, start), start, nil)
	admit(t, j, packet(1, 12, start), start, ErrFull)
	for _, bad := range []struct {
		window time.Duration
		live   int
	}{{0, 10}, {time.Second, 0}, {time.Second, maxLive + 1}} {
		if err := j.Retune(bad.window, bad.live, start); err == nil {
			t.Errorf("Retune(%v, %d): no error", bad.window, bad.live)
		}
	}
	j.Close()
	if err := j.Retune(time.Second, 1, start); err == nil {
		t.Error("on a closed journal: no error")
	}
}
