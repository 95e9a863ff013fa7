package replay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestAdmitOnce(t *testing.T) {
	j, _ := fresh(t, config())
	e := packet(1, 1, start)
	a := admit(t, j, e, start, nil)
	if a.Retry || !a.First.Equal(start) || !a.At.Equal(start) || a.Outcome != nil {
		t.Errorf("got %+v, want a first admission", a)
	}
	admit(t, j, e, start, ErrSpent)
	elsewhere := e
	elsewhere.From = netip.MustParseAddr("192.0.2.3")
	admit(t, j, elsewhere, start, ErrSpentElsewhere)
	if !errors.Is(ErrSpentElsewhere, ErrSpent) {
		t.Error("ErrSpentElsewhere does not wrap ErrSpent")
	}
	admit(t, j, packet(2, 1, start), start, nil) // the same nonce of another key
}

func TestAdmitNeedsFreshness(t *testing.T) {
	j, _ := fresh(t, config())
	for _, off := range []time.Duration{30*time.Second + 1, -30*time.Second - 1} {
		admit(t, j, packet(1, 1, after(off)), start, errStale)
	}
	admit(t, j, packet(1, 1, after(30*time.Second)), start, nil)
	admit(t, j, packet(1, 2, after(-30*time.Second)), start, nil)
}

func TestSpentUntilStale(t *testing.T) {
	for _, off := range []time.Duration{-30 * time.Second, 0, 30 * time.Second} {
		j, _ := fresh(t, config())
		e := packet(1, 1, after(off))
		admit(t, j, e, start, nil)
		last := e.Stamp.Add(30 * time.Second)
		admit(t, j, e, last, ErrSpent)
		for n := range 3 { // others keep it busy
			admit(t, j, packet(1, 10+n, last), last, nil)
		}
		admit(t, j, e, last, ErrSpent)
	}
}

func TestFloorStandsForWhatIsForgotten(t *testing.T) {
	j, d := fresh(t, config())
	first, second := packet(1, 1, start), packet(1, 2, after(time.Second))
	admit(t, j, second, start, nil)
	admit(t, j, first, start, nil)
	admit(t, j, packet(1, 3, after(70*time.Second)), after(70*time.Second), nil)
	check := func(j *Journal) {
		t.Helper()
		admit(t, j, first, start, ErrForgotten)
		admit(t, j, second, start, ErrForgotten)
		admit(t, j, packet(1, 4, second.Stamp), start, ErrForgotten) // never seen, but indistinguishable
	}
	check(j)
	check(reopen(t, copyOf(d), config(), start)) // clock set back, then a restart
	admit(t, j, packet(1, 4, second.Stamp.Add(1)), start, nil)
	admit(t, j, packet(2, 1, start), start, nil) // another key is not affected
}

func TestFullKeyIsRefusedAlone(t *testing.T) {
	c := config()
	c.Room = 1024
	j, _ := fresh(t, c)
	for n := range 256 {
		admit(t, j, packet(1, n, start), start, nil)
	}
	over := packet(1, 256, start)
	admit(t, j, over, start, ErrFull)
	admit(t, j, packet(2, 1, start), start, nil)
	admit(t, j, packet(1, 0, start), start, ErrSpent)
	stale := packet(1, 257, after(30*time.Second+1)) // the others are remembered, but no longer count
	admit(t, j, stale, stale.Stamp, nil)
	admit(t, j, over, start, ErrFull)
	later := packet(1, 258, after(60*time.Second+1))
	admit(t, j, later, later.Stamp, nil)
	admit(t, j, over, start, ErrForgotten) // unspent, but no longer distinguishable from the spent ones
}

func TestFullIsUnspent(t *testing.T) {
	c := config()
	c.LiveNonces = 2
	j, _ := fresh(t, c)
	admit(t, j, packet(1, 1, after(-30*time.Second)), start, nil)
	admit(t, j, packet(1, 2, start), start, nil)
	e := packet(1, 3, start)
	admit(t, j, e, start, ErrFull)
	admit(t, j, e, after(time.Second), nil)
}

// A nonce with a late stamp must not keep those behind it alive.
func TestLateStampsDoNotFillAKey(t *testing.T) {
	c := config()
	c.LiveNonces = 4
	j, _ := fresh(t, c)
	admit(t, j, packet(1, 1, after(30*time.Second)), start, nil)
	for n := range 3 {
		admit(t, j, packet(1, 2+n, after(-30*time.Second)), start, nil)
	}
	admit(t, j, packet(1, 9, after(time.Second)), after(time.Second), nil)
}

// A steady client at its limit is refused nothing because of nonces that are remembered beyond their freshness.
func TestStaleNoncesDoNotFillAKey(t *testing.T) {
	for _, of := range [][2]int{{30, 0}, {30, 15}, {30, 30}, {20, 0}, {1, 0}} {
		c, window, off := config(), of[0], of[1]
		c.LiveNonces, c.Room = window+1+off, 256
		c.Window = time.Duration(window) * time.Second
		j, d := fresh(t, c)
		for n := range 500 {
			now := after(time.Duration(n) * time.Second)
			admit(t, j, packet(1, n, now.Add(time.Duration(off)*time.Second)), now, nil)
			if n%100 == 99 {
				j.store.background.Wait()
				d = copyOf(d)
				j = reopen(t, d, c, now)
			}
		}
	}
}

// TestRing: in whatever order nonces come, as after a restart, the ring is ordered by stamp, and the nonce that the
// limit counts to is the limit-th from the newest.
func TestRing(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		c := config()
		c.LiveNonces = 1 + rng.IntN(5)
		m, stamps := newMemory(c), []int64{}
		for slot := range int32(40) {
			if h := m.holdings.at(0); h.count > 0 && rng.IntN(4) == 0 {
				m.drop(0)
				stamps = stamps[1:]
			}
			stamp := int64(1 + rng.IntN(20))
			m.remember(slot, entry{nonce: [24]byte{byte(slot)}, stamp: stamp})
			at, _ := slices.BinarySearch(stamps, stamp+1)
			stamps = slices.Insert(stamps, at, stamp)

			h := m.holdings.at(0)
			var got []int64
			for i, next := int32(0), h.oldest; i < h.count; i++ {
				got = append(got, m.entries.at(next).stamp)
				next = m.entries.at(next).next
			}
			if !slices.Equal(got, stamps) {
				t.Fatalf("got %v, want %v", got, stamps)
			}
			if n := len(stamps) - c.LiveNonces; n >= 0 && m.entries.at(h.last).stamp != stamps[n] {
				t.Fatalf("%d of %v: got %d", c.LiveNonces, stamps, m.entries.at(h.last).stamp)
			}
		}
	}
}

// After a restart with a lower limit, more nonces have one stamp than the limit allows; they are forgotten one by one.
func TestLowerLimit(t *testing.T) {
	c := config()
	c.LiveNonces = 31
	j, d := fresh(t, c)
	for n := range 31 {
		admit(t, j, packet(1, n, start), start, nil)
	}
	c.LiveNonces = 30
	j = reopen(t, copyOf(d), c, start)
	admit(t, j, packet(1, 50, after(1)), after(1), ErrFull)
	now := after(45 * time.Second)
	for n := range 29 {
		admit(t, j, packet(1, 100+n, now), now, nil)
	}
	admit(t, j, packet(1, 200, now), now, ErrFull) // twice as many are remembered
	now = after(61 * time.Second)
	admit(t, j, packet(1, 300, now), now, nil)
	for range 3 {
		admit(t, j, packet(1, 301, now), now, ErrFull)
	}
}

// Nonces with stamps that are stale at once do not take unlimited room.
func TestStaleNoncesAreLimited(t *testing.T) {
	c := config()
	c.LiveNonces = 4
	j, _ := fresh(t, c)
	e := packet(1, 0, start)
	for n := range 8 {
		e = packet(1, n, after(time.Duration(n-30_000)*time.Millisecond))
		admit(t, j, e, e.Stamp.Add(30*time.Second), nil)
	}
	over := packet(1, 8, after(time.Second))
	admit(t, j, over, after(time.Second), ErrFull)
	admit(t, j, packet(2, 8, after(time.Second)), after(time.Second), nil)
	now := after(30*time.Second + 1)
	admit(t, j, over, now, nil)
}

func TestRetry(t *testing.T) {
	j, d := fresh(t, config())
	first := packet(1, 1, start)
	admit(t, j, first, after(time.Millisecond), nil)
	retry := packet(1, 2, after(time.Second))
	retry.Request = first.Request
	a := admit(t, j, retry, after(time.Second), nil)
	if !a.Retry || !a.First.Equal(start) || !a.At.Equal(after(time.Millisecond)) || a.Outcome != nil {
		t.Errorf("before it was settled: got %+v", a)
	}
	outcome := bytes.Repeat([]byte{7}, MaxOutcome)
	lab.Must(t, j.Settle(1, first.Request, outcome))
	for n, j := range []*Journal{j, reopen(t, copyOf(d), config(), after(time.Second))} {
		retry := packet(1, 3+n, after(2*time.Second))
		retry.Request = first.Request
		a := admit(t, j, retry, after(2*time.Second), nil)
		if !a.Retry || !a.First.Equal(start) || !a.At.Equal(after(time.Millisecond)) || !bytes.Equal(a.Outcome, outcome) {
			t.Errorf("got %+v, want the first one's outcome", a)
		}
		admit(t, j, retry, after(2*time.Second), ErrSpent)
	}
	other := packet(2, 1, start)
	if a := admit(t, j, other, start, nil); a.Retry {
		t.Error("another key's request id is not a retry")
	}
}

// Each retry returns the outcome, in whatever order retries come, even past the life of the first packet.
func TestRetryOutlivesTheFirst(t *testing.T) {
	for _, stamps := range [][]time.Duration{{0, 20, 40, 60, 80, 110}, {20, 0, 45, 40, 60, 85, 110}} {
		j, d := fresh(t, config())
		for n, stamp := range stamps {
			now := after(max(stamp, stamps[0]) * time.Second)
			e := packet(1, n, after(stamp*time.Second))
			e.Request = [16]byte{9}
			a := admit(t, j, e, now, nil)
			if n == 0 {
				err := j.Settle(1, e.Request, []byte("granted"))
				wantErr(t, "Settle", err, nil)
				continue
			}
			if !a.Retry || string(a.Outcome) != "granted" || !a.First.Equal(after(stamps[0]*time.Second)) {
				t.Errorf("%v: retry %d: got %+v", stamps, n, a)
			}
			j = reopen(t, copyOf(d), config(), now)
			d = j.store.disk.(*memDisk)
		}
	}
}

// A packet that was held back while the others of its request went stale is recognised by its request id as long as it
// is fresh, even if the window is shorter than the spread of a request's stamps.
func TestHeldBackRetryIsKnown(t *testing.T) {
	for _, window := range []time.Duration{time.Second, 10 * time.Second, 30 * time.Second, 10 * time.Minute} {
		for _, spread := range []time.Duration{time.Millisecond, 9400 * time.Millisecond, 30 * time.Second} {
			c := config()
			c.Window = window
			j, d := fresh(t, c)
			admit(t, j, packet(1, 1, start), start, nil)
			wantErr(t, "Settle", j.Settle(1, packet(1, 1, start).Request, []byte("granted")), nil)
			held := packet(1, 2, after(spread))
			held.Request = packet(1, 1, start).Request
			last := held.Stamp.Add(window)
			for n := range 20 { // of this key and another, so that everything that may be forgotten is
				admit(t, j, packet(uint64(1+n%2), 10+n, last), last, nil)
			}
			j.store.background.Wait()
			for _, j := range []*Journal{reopen(t, copyOf(d), c, last), j} {
				if a := admit(t, j, held, last, nil); !a.Retry || string(a.Outcome) != "granted" || !a.First.Equal(start) {
					t.Errorf("window %v, stamped %v later: got %+v", window, spread, a)
				}
			}
		}
	}
}

func TestReusedRequestIsSpent(t *testing.T) {
	j, d := fresh(t, config())
	first := packet(1, 1, start)
	admit(t, j, first, start, nil)
	other := packet(1, 2, after(time.Second))
	other.Request, other.Digest = first.Request, [8]byte{1}
	if a := admit(t, j, other, after(time.Second), ErrReused); a.Retry {
		t.Errorf("got %+v", a)
	}
	for n, j := range []*Journal{j, reopen(t, copyOf(d), config(), start)} {
		admit(t, j, other, after(time.Second), ErrSpent)
		retry := packet(1, 3+n, after(2*time.Second))
		retry.Request = first.Request
		if a := admit(t, j, retry, after(2*time.Second), nil); !a.Retry {
			t.Error("the first request is no longer known by its id")
		}
	}
}

func TestSettle(t *testing.T) {
	j, _ := fresh(t, config())
	e := packet(1, 1, start)
	admit(t, j, e, start, nil)
	if err := j.Settle(1, e.Request, make([]byte, MaxOutcome+1)); err == nil {
		t.Error("an outcome that is too long was taken")
	}
	if err := j.Settle(1, [16]byte{1, 2}, nil); err == nil {
		t.Error("an unknown request was settled")
	}
	if err := j.Settle(2, e.Request, nil); err == nil {
		t.Error("an unknown key's request was settled")
	}
	wantErr(t, "Settle", j.Settle(1, e.Request, nil), nil)
	retry := packet(1, 2, start)
	retry.Request = e.Request
	if a := admit(t, j, retry, start, nil); a.Outcome == nil || len(a.Outcome) != 0 {
		t.Errorf("got %v, want an empty outcome", a.Outcome)
	}
}

func TestFloorOf(t *testing.T) {
	j, d := fresh(t, config())
	topic := func(n int) [16]byte { return [16]byte{byte(n), 1} }
	for n := range 25 {
		wantErr(t, "SetFloor", j.SetFloor(topic(n), after(time.Duration(n))), nil)
	}
	wantErr(t, "SetFloor", j.SetFloor(topic(3), start), nil)
	wantErr(t, "SetFloor", j.SetFloor(topic(99), time.Time{}), nil)
	for _, j := range []*Journal{j, reopen(t, copyOf(d), config(), start)} {
		for n := range 25 {
			if got := j.FloorOf(topic(n)); !got.Equal(after(time.Duration(n))) {
				t.Errorf("floor of topic %d: got %v", n, got)
			}
		}
		if got := j.FloorOf(topic(99)); !got.IsZero() {
			t.Errorf("floor of an unknown topic: got %v", got)
		}
	}
}

func TestClosed(t *testing.T) {
	j, _ := fresh(t, config())
	e := packet(1, 1, start)
	admit(t, j, e, start, nil)
	wantErr(t, "Close", j.Close(), nil)
	_, err := j.Admit(packet(1, 2, start), start)
	for _, err := range []error{err, j.Settle(1, e.Request, nil), j.SetFloor([16]byte{1}, start)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v, want os.ErrClosed", err)
		}
	}
}

// Slots are reused: a journal under a steady load does not grow.
func TestSteadyLoadKeepsItsRoom(t *testing.T) {
	c := config()
	c.Room = 1100 // 600 nonces remembered, each up to 90 s, a tenth of it floors, and those not yet forgotten
	j, d := fresh(t, c)
	size := len(d.image)
	for n := range 20_000 {
		now := after(time.Duration(n) * 100 * time.Millisecond)
		e := packet(uint64(n%700), n, now.Add(time.Duration(n*7919%60-30)*time.Second))
		admit(t, j, e, now, nil)
	}
	d.mu.Lock() // the high-water mark may still be moved ahead
	defer d.mu.Unlock()
	if len(d.image) != size {
		t.Errorf("the file grew from %d to %d bytes", size, len(d.image))
	}
	if s := j.Status(); s.Live > 900 || s.Keys != 700 || s.Records != s.Live+70 {
		t.Errorf("got %+v", s)
	}
}

func TestRingIsInOrderOfStamps(t *testing.T) {
	j, _ := fresh(t, config())
	stamps := []int{5, 3, 9, 3, 1, 9, 4, 12, 0}
	for n, s := range stamps {
		admit(t, j, packet(1, n, after(time.Duration(s))), start, nil)
	}
	var got []int
	for at := j.memory.holdings.at(0).oldest; len(got) < len(stamps); at = j.memory.entries.at(at).next {
		got = append(got, int(j.memory.entries.at(at).stamp-start.UnixNano()))
	}
	slices.Sort(stamps)
	if !slices.Equal(got, stamps) {
		t.Errorf("got %v, want %v", got, stamps)
	}
}

// Keys that never return are forgotten while packets of others arrive, a few at a time.
func TestOthersAreForgotten(t *testing.T) {
	c := config()
	c.Room = 1024
	j, _ := fresh(t, c)
	for n := range 500 {
		admit(t, j, packet(uint64(n), n, start), start, nil)
	}
	for n := range 250 {
		now := after(time.Minute + time.Duration(n)*time.Millisecond)
		live := j.Status().Live
		admit(t, j, packet(1000, 500+n, now), now, nil)
		if dropped := live + 1 - j.Status().Live; dropped > finds*atOnce {
			t.Fatalf("one packet had to forget %d nonces", dropped)
		}
	}
	if got := j.Status().Live; got > 260 {
		t.Errorf("%d nonces are remembered, 250 live", got)
	}
}

// Two packets of a request with one stamp: after a restart the outcome is found where it was written.
func TestRetryWithTheSameStamp(t *testing.T) {
	j, d := fresh(t, config())
	now := start
	admit(t, j, packet(1, 0, now), now, nil)
	first, second, third := packet(1, 1, now), packet(1, 2, now), packet(1, 3, now)
	second.Request, third.Request = first.Request, first.Request
	lower := j.store.next // slots are loaded in the other order
	j.store.next += 2
	j.store.release(lower)
	j.store.release(lower + 1)
	admit(t, j, first, now, nil)
	admit(t, j, second, now, nil)
	wantErr(t, "Settle", j.Settle(1, first.Request, []byte("granted")), nil)
	for _, j := range []*Journal{j, reopen(t, copyOf(d), config(), now)} {
		if a := admit(t, j, third, now, nil); string(a.Outcome) != "granted" {
			t.Errorf("got %+v", a)
		}
	}
}

// Of many goroutines that spend one nonce at the same time, one succeeds.
func TestConcurrentAdmit(t *testing.T) {
	c := config()
	c.Room = 1024
	j, _ := fresh(t, c)
	var admitted [100]atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range admitted {
				e := packet(1, n, start)
				if _, err := j.Admit(e, start); err == nil {
					admitted[n].Add(1)
				}
				_ = j.Settle(1, e.Request, []byte("granted"))
				_ = j.SetFloor([16]byte{byte(n)}, start)
				_, _ = j.FloorOf([16]byte{byte(n)}), j.Status()
			}
		})
	}
	wg.Wait()
	for n := range admitted {
		if got := admitted[n].Load(); got != 1 {
			t.Errorf("packet %d was admitted %d times", n, got)
		}
	}
}

// TestConcurrentMethods: each method runs beside all others. The race detector (make race) finds unlocked access.
func TestConcurrentMethods(t *testing.T) {
	c := config()
	c.Room = 1024
	j, _ := fresh(t, c)
	var wg sync.WaitGroup
	for _, call := range []func(n int){
		func(n int) { now := after(time.Duration(n) * time.Second); _, _ = j.Admit(packet(1, n, now), now) },
		func(n int) { _ = j.Settle(1, packet(1, n, start).Request, []byte("granted")) },
		func(n int) { _ = j.SetFloor([16]byte{byte(n)}, after(time.Duration(n)*time.Second)) },
		func(n int) { j.FloorOf([16]byte{byte(n)}) },
		func(int) { j.Status() },
		func(n int) {
			_ = j.Retune(time.Duration(10+n%10)*time.Second, 256, after(time.Duration(n)*time.Second))
		},
		func(n int) {
			if n == 199 {
				_ = j.Close()
			}
		},
	} {
		wg.Go(func() {
			for n := range 200 {
				call(n)
			}
		})
	}
	wg.Wait()
}
