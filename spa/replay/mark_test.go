package replay

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var errBroken = errors.New("broken")

func failing(kind string) func(op) error {
	return func(o op) error {
		if o.kind == kind {
			return errBroken
		}
		return nil
	}
}

func (d *memDisk) count(kind string) int {
	n := 0
	for _, o := range d.ops {
		if o.kind == kind {
			n++
		}
	}
	return n
}

// The first packet after a silence syncs the high-water mark; later ones are synced in the background, never by
// packets.
func TestMarkKeepsAhead(t *testing.T) {
	j, d := fresh(t, config())
	for _, begin := range []time.Duration{0, time.Hour} {
		syncs := d.count("sync")
		admit(t, j, packet(1, int(begin), after(begin)), after(begin), nil)
		if got := d.count("sync") - syncs; got != 1 {
			t.Fatalf("the first packet synced %d times", got)
		}
		for n := range 300 {
			stamp := after(begin + time.Duration(n)*100*time.Millisecond)
			if stamp.UnixNano() > j.store.highWater.Load() {
				t.Fatalf("packet %d has to wait for the high-water mark", n)
			}
			admit(t, j, packet(uint64(n%2), int(begin)+1+n, stamp), stamp, nil)
			j.store.background.Wait()
		}
		if got := d.count("sync") - syncs; got > 7 {
			t.Errorf("%d syncs in 30 s", got)
		}
	}
}

func TestNoSyncNoAdmission(t *testing.T) {
	for _, kind := range []string{"sync", "write"} {
		j, d := fresh(t, config())
		admit(t, j, packet(1, 0, start), start, nil)
		j.store.background.Wait()
		d.fail = failing(kind)
		beyond := packet(1, 1, after(lead+1))
		admit2 := func(want bool) {
			t.Helper()
			_, err := j.Admit(beyond, start)
			if (err == nil) != want {
				t.Errorf("%s fails: got %v", kind, err)
			}
			if !want && !errors.Is(err, errBroken) {
				t.Errorf("%v does not say why", err)
			}
		}
		admit2(false)
		admit2(false) // it was not spent
		if kind == "sync" {
			admit(t, j, packet(1, 2, after(lead)), start, nil) // the old mark covers it
		}
		j.store.background.Wait()
		d.fail = nil
		admit2(true)
	}
}

func TestFailedWriteIsNotSpent(t *testing.T) {
	j, d := fresh(t, config())
	admit(t, j, packet(1, 0, start), start, nil)
	j.store.background.Wait()
	wantErr(t, "SetFloor", j.SetFloor([16]byte{2}, start), nil)
	j.store.background.Wait()
	records := j.Status().Records
	d.fail = failing("write")
	for range 3 {
		if _, err := j.Admit(packet(1, 1, start), start); !errors.Is(err, errBroken) {
			t.Fatalf("got %v", err)
		}
	}
	if err := j.Settle(1, packet(1, 0, start).Request, nil); !errors.Is(err, errBroken) {
		t.Errorf("Settle: got %v", err)
	}
	if err := j.SetFloor([16]byte{1}, start); !errors.Is(err, errBroken) {
		t.Errorf("SetFloor: got %v", err)
	}
	if got := j.FloorOf([16]byte{1}); !got.IsZero() {
		t.Errorf("a floor that is not in the file: %v", got)
	}
	d.fail = nil
	admit(t, j, packet(1, 1, start), start, nil)
	if got := j.Status().Records; got > records+1 {
		t.Errorf("slots leak: %d records, %d before", got, records)
	}
}

// If a nonce cannot be forgotten in the file, it is not forgotten in memory.
func TestFailedForgetting(t *testing.T) {
	j, d := fresh(t, config())
	old := packet(1, 1, start)
	admit(t, j, old, start, nil)
	d.fail = failing("write")
	late := packet(1, 2, after(61*time.Second))
	if _, err := j.Admit(late, late.Stamp); !errors.Is(err, errBroken) {
		t.Fatalf("got %v", err)
	}
	admit(t, j, old, start, ErrSpent)
}

// A process killed between writing a mark and syncing it leaves a mark that power loss may undo: the next process must
// not rely on it.
func TestUnsyncedMarkIsNotTrusted(t *testing.T) {
	j, d := fresh(t, config())
	admit(t, j, packet(1, 1, start), start, nil)
	j.store.background.Wait()
	synced := slices.Clone(d.image)
	d.fail = func(o op) error {
		if o.kind == "sync" {
			panic("killed")
		}
		return nil
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = j.Admit(packet(1, 2, after(lead+time.Second)), start)
	}()
	d.fail = nil
	next := reopen(t, copyOf(d), config(), start)
	disk := next.store.disk.(*memDisk)
	admit(t, next, packet(1, 3, after(lead+time.Second)), start, nil)
	if disk.count("sync") == 0 {
		c := config()
		c.BootID = "next"
		lost := reopen(t, &memDisk{image: synced}, c, start)
		admit(t, lost, packet(1, 3, after(lead+time.Second)), start, ErrFloor)
		t.Error("admitted beyond the high-water mark that is synced")
	}
}

// Power loss may take a topic's floor only if the reboot's own floor covers it: from the moment that SetFloor returns,
// and even with a clock that is far behind.
func TestMarkCoversFloors(t *testing.T) {
	j, d := fresh(t, config())
	floor := after(time.Hour + 30*time.Second)
	wantErr(t, "SetFloor", j.SetFloor([16]byte{1}, floor), nil)
	synced := []byte{}
	for n, o := range d.ops {
		if slices.ContainsFunc(d.ops[n:], func(o op) bool { return o.kind == "sync" }) {
			synced = o.apply(synced, len(o.data))
		}
	}
	c := config()
	c.BootID = "next"
	next := reopen(t, &memDisk{image: synced}, c, start)
	admit(t, next, packet(1, 1, floor), floor, ErrFloor)
	admit(t, next, packet(1, 2, floor.Add(lead+1)), floor, nil)
}

func TestCloseWaitsForTheMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, d := fresh(t, config())
		admit(t, j, packet(1, 1, start), start, nil)
		release := make(chan struct{})
		d.fail = func(o op) error {
			if o.kind == "sync" {
				<-release
			}
			return nil
		}
		admit(t, j, packet(1, 2, after(lead)), after(lead), nil) // syncs in the background
		go j.Close()
		synctest.Wait()
		if d.count("close") != 0 {
			t.Error("closed while the high-water mark is synced")
		}
		close(release)
		synctest.Wait()
		if d.count("close") != 1 {
			t.Error("not closed")
		}
	})
}

// A torn or failed header is written again in the same place, so that one of the two is always valid.
func TestHeaderIsNeverLost(t *testing.T) {
	j, d := fresh(t, config())
	admit(t, j, packet(1, 1, start), start, nil)
	j.store.background.Wait()
	before := len(d.ops)
	d.fail = failing("sync")
	for n := range 3 {
		_, _ = j.Admit(packet(1, 2+n, after(lead+time.Second)), start)
	}
	pages := map[int64]bool{}
	for _, o := range d.ops[before:] {
		if o.off < firstSlot {
			pages[o.off] = true
		}
	}
	if len(pages) != 1 {
		t.Errorf("unsynced headers went to %d pages", len(pages))
	}
	for n := range headerSize {
		torn := copyOf(d)
		for page := range pages {
			copy(torn.image[page+int64(n):page+headerSize], make([]byte, headerSize))
		}
		c := config()
		c.BootID = "next"
		lost := reopen(t, torn, c, after(-time.Hour))
		admit(t, lost, packet(1, 1, start), start, ErrFloor)
	}
}

// Without more room, no live slot is overwritten, and expired ones are found wherever they are.
func TestNoRoomLeft(t *testing.T) {
	c := config()
	c.Room = 300
	j, d := fresh(t, c)
	d.fail = failing("grow")
	var spent []Entry
	var err error
	for n := 0; err == nil; n++ {
		e := packet(uint64(n%3), n, after(time.Duration(n%7)*time.Second))
		if _, err = j.Admit(e, start); err == nil {
			spent = append(spent, e)
		}
	}
	if !errors.Is(err, errBroken) || len(spent) != 299 {
		t.Fatalf("after %d nonces: %v", len(spent), err)
	}
	for _, e := range spent {
		admit(t, j, e, start, ErrSpent)
	}
	now := after(60*time.Second + 1) // those stamped at the start have expired: every seventh
	for n := range 43 {
		admit(t, j, packet(uint64(n%3), 1000+n, now), now, nil)
	}
	if _, err := j.Admit(packet(0, 2000, now), now); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	for _, e := range spent {
		if _, err := j.Admit(e, start); err == nil {
			t.Fatal("admitted again")
		}
	}
	d.fail = nil
	admit(t, j, packet(0, 2000, now), now, nil)
	if got := j.Status().Room; got != 300+growth {
		t.Errorf("room after growing: %d", got)
	}
	if s := reopen(t, copyOf(d), c, now).Status(); s.Room != 300+growth || s.Live != 300 || s.Reason != "" {
		t.Errorf("after a restart: %+v", s)
	}
}

func TestGrowsByLessWhenTheDiskHasLess(t *testing.T) {
	c := config()
	c.Room = 16
	j, d := fresh(t, c)
	d.fail = func(o op) error {
		if o.kind == "grow" && o.off > offset(32) {
			return errBroken
		}
		return nil
	}
	for n := range 31 {
		admit(t, j, packet(1, n, start), start, nil)
	}
	if _, err := j.Admit(packet(1, 31, start), start); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

// full returns a journal that cannot grow, with one nonce of key 50 stamped 20 s before the others and one of key 51 10
// s before them, at the given places.
func full(t *testing.T, c Config, first, second int) (*Journal, *memDisk) {
	t.Helper()
	j, d := fresh(t, c)
	d.fail = failing("grow")
	for n := range c.Room - 1 {
		e := packet(uint64(n%8), n, after(10*time.Second))
		switch n {
		case first:
			e.Key, e.Stamp = 50, after(-10*time.Second)
		case second:
			e.Key, e.Stamp = 51, start
		}
		admit(t, j, e, start, nil)
	}
	return j, d
}

func TestLastRoomIsFound(t *testing.T) {
	c := config()
	c.Room = 300
	for first := 3; first < 290; first += 41 {
		j, _ := full(t, c, first, 300-first)
		for n, now := range []time.Time{after(51 * time.Second), after(61 * time.Second)} {
			admit(t, j, packet(0, 1000+n, now), now, nil)
			if _, err := j.Admit(packet(0, 2000+n, now), now); !errors.Is(err, errBroken) {
				t.Fatalf("got %v", err)
			}
		}
		if err := j.SetFloor([16]byte{1}, start); !errors.Is(err, errBroken) {
			t.Errorf("SetFloor: got %v", err)
		}
	}
}

// A full journal opens without room, even if the floors of a key are later than its nonces.
func TestFullJournalOpens(t *testing.T) {
	c := config()
	c.Room = 32
	j, d := full(t, c, 10, 20)
	d.fail = failing("grow")
	now := after(71 * time.Second) // all have expired
	for key := range uint64(12) {  // two of them are new
		admit(t, j, packet(100+key, 1, now), now, nil)
	}
	for n, err := 0, error(nil); err == nil; n++ {
		_, err = j.Admit(packet(100, 2+n, now), now)
	}
	again := copyOf(d)
	again.fail = failing("grow")
	again.ops = nil
	j = reopen(t, again, c, now)
	for key := range uint64(12) {
		admit(t, j, packet(100+key, 1, now), now, ErrSpent)
	}
	if s := j.Status(); s.Reason != "" || s.Records != c.Room {
		t.Errorf("got %+v", s)
	}
}
