package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// signAll makes every checksum of an image right, as an attacker who can write the journal can.
func signAll(image []byte) {
	for _, at := range []int{0, page} {
		sign(image[at:][:headerSize], 0)
	}
	for at := firstSlot; at+slotSize <= len(image); at += slotSize {
		b := image[at:][:slotSize]
		switch {
		case isZero(b):
		case b[4] == kindKeys || b[4] == kindTopics:
			sign(b, 0)
		default:
			sign(b[:half], 0)
			if !isZero(b[half:]) {
				sign(b[half:], binary.LittleEndian.Uint32(b))
			}
		}
	}
}

// used returns the disk of a journal with nonces, outcomes and floors of three keys: a copy, because the journal may
// still be writing its marks ahead.
func used(t testing.TB) *memDisk {
	t.Helper()
	j, d := fresh(t, config())
	for n := range 20 {
		now := after(time.Duration(n*7) * time.Second)
		admit(t, j, packet(uint64(n%3), n, now), now, nil)
		wantErr(t, "Settle", j.Settle(uint64(n%3), packet(0, n, now).Request, []byte("granted")), nil)
	}
	wantErr(t, "SetFloor", j.SetFloor([16]byte{1}, start), nil)
	return copyOf(d)
}

// TestUnassignedBytes: bytes that the format does not assign are zero, never old contents of the buffer.
func TestUnassignedBytes(t *testing.T) {
	image := used(t).image
	kinds := map[byte]int{}
	for slot := range int32(64) {
		b := image[offset(slot):][:slotSize]
		out := [][]byte{b[6:8], b[104:half], b[133:136], b[136+int(b[132]):]}
		if b[4] != kindSpent {
			out = [][]byte{b[5:16]}
		}
		kinds[b[4]]++
		for _, part := range out {
			if !isZero(part) {
				t.Errorf("slot %d: %x in %x", slot, part, b)
			}
		}
	}
	if kinds[kindSpent] == 0 || kinds[kindKeys] == 0 || kinds[kindTopics] == 0 {
		t.Errorf("slots of each kind: %v", kinds)
	}
}

// FuzzOpen: whatever a compromised daemon leaves in its journal, with valid checksums, the next start admits packets,
// within the room that a journal may have.
func FuzzOpen(f *testing.F) {
	image := used(f).image
	f.Add([]byte{}, true)
	f.Add([]byte{}, false)
	for _, at := range []uint16{4, 12, 16, 24, 60, 68, 76, 84, firstSlot + 4, firstSlot + 5, firstSlot + 64 + 7,
		firstSlot + 132, firstSlot + slotSize + 4} {
		f.Add(binary.BigEndian.AppendUint16(nil, at), true)
		f.Add(append(binary.BigEndian.AppendUint16(nil, at), 0xff, byte(at>>8), byte(at), 0x7f), true)
	}
	f.Fuzz(func(t *testing.T, changes []byte, both bool) {
		d := &memDisk{image: bytes.Clone(image)}
		for ; len(changes) >= 3; changes = changes[3:] {
			at := int(binary.BigEndian.Uint16(changes)) % len(d.image)
			d.image[at] = changes[2]
			if both && at < headerSize {
				d.image[page+at] = changes[2]
			}
		}
		signAll(d.image)
		now := after(3 * time.Minute)
		for range 2 {
			j := reopen(t, d, config(), now)
			if room := j.Status().Room; room > maxRoom || int64(len(d.image)) != offset(int32(room)) {
				t.Fatalf("room for %d in %d bytes", room, len(d.image))
			}
			use(j, now)
			wantErr(t, "Close", j.Close(), nil)
		}
	})
}

// use does with a journal what a server does, and ignores the results.
func use(j *Journal, now time.Time) {
	for n := range 8 {
		for _, at := range []time.Time{now, now.Add(time.Hour), now.Add(-time.Hour), time.Unix(0, math.MaxInt64),
			time.Unix(0, math.MinInt64)} {
			e := packet(uint64(n%4), n, at)
			_, _ = j.Admit(e, at)
			_ = j.Settle(e.Key, e.Request, []byte("denied"))
			_ = j.FloorOf([16]byte{byte(n)})
		}
	}
	_ = j.SetFloor([16]byte{2}, now)
	_ = j.Retune(time.Minute, 12, now)
	_ = j.Status()
}

// TestHostileHeader: numbers at the ends of their range must not turn a floor into one of long ago.
func TestHostileHeader(t *testing.T) {
	for name, forge := range map[string]func(h *header){
		"the last mark":         func(h *header) { h.HighWater = math.MaxInt64 },
		"the last floor":        func(h *header) { h.Floor = math.MaxInt64 },
		"the longest window":    func(h *header) { h.Window = math.MaxInt64 },
		"a window below zero":   func(h *header) { h.Window = math.MinInt64 },
		"the last number":       func(h *header) { h.Number = math.MaxUint64 },
		"more room than can be": func(h *header) { h.Room = math.MaxInt64 },
	} {
		t.Run(name, func(t *testing.T) {
			c, d := config(), used(t)
			for _, at := range []int{0, page} {
				h, err := decodeHeader(d.image[at:][:headerSize])
				wantErr(t, "the header", err, nil)
				forge(&h)
				copy(d.image[at:], h.encode())
			}
			c.BootID = "next"
			now := after(time.Hour)
			wantFloor(t, reopen(t, d, c, now), now, now.Add(30*time.Second), damaged)
			again := reopen(t, d, c, now) // the next start reads the new headers
			wantFloorStatus(t, again, now.Add(30*time.Second))
		})
	}
}

// TestHostileStamp: a nonce stamped after the high-water mark is damage, because an honest server writes none.
func TestHostileStamp(t *testing.T) {
	d := used(t)
	slot := d.image[offset(1):][:slotSize]
	if slot[4] != kindSpent {
		t.Fatalf("slot 1 is of kind %d", slot[4])
	}
	binary.LittleEndian.PutUint64(slot[64:], math.MaxInt64)
	signAll(d.image)
	if s := reopen(t, d, config(), after(time.Hour)).Status(); s.Reason != damaged.String() {
		t.Errorf("got %+v", s)
	}
}

// TestHostilePlaces: a nonce whose key has no floor, in a journal without room for one.
func TestHostilePlaces(t *testing.T) {
	d := used(t)
	for at := int(offset(0)); at < len(d.image); at += slotSize {
		e := entry{stamp: start.UnixNano(), nonce: [24]byte{byte(at >> 8), byte(at >> 16)}}
		e.encode((*[slotSize]byte)(d.image[at:]), uint64(at), nil)
	}
	d.fail = failing("grow")
	c, id, err := config().complete()
	wantErr(t, "complete", err, nil)
	d.fail = func(o op) error {
		if o.kind == "grow" && o.off > offset(64) {
			return errBroken
		}
		return nil
	}
	j, err := open(d, c, id, start, func() string { return "aside" })
	if err != nil {
		t.Fatalf("the server does not start: %v", err)
	}
	if s := j.Status(); s.Reason != damaged.String() {
		t.Errorf("got %+v", s)
	}
}

// TestHostileNames: names of keys and topics take memory in addition to their slots, and are limited.
func TestHostileNames(t *testing.T) {
	d := used(t)
	slots := maxNames/perSlot + 1
	d.image = append(d.image, make([]byte, (slots+64)*slotSize)...)
	for i := range slots {
		b := d.image[offset(int32(64+i)):][:slotSize]
		b[4] = kindTopics
		sign(b, 0)
	}
	if s := reopen(t, d, config(), start).Status(); s.Reason != damaged.String() || s.Keys != 0 {
		t.Errorf("got %+v", s)
	}
}

// TestHostileOrder: nonces in the file are in the order that takes the most work to sort. Inserting them one by one
// would take hours.
func TestHostileOrder(t *testing.T) {
	const many = 1 << 19
	d := used(t)
	image := make([]byte, offset(64+many))
	copy(image, d.image)
	for i := range many {
		e := entry{stamp: start.UnixNano() - int64(i)}
		binary.LittleEndian.PutUint64(e.nonce[:], uint64(i))
		e.encode((*[slotSize]byte)(image[offset(int32(64+i)):]), 0, nil)
		binary.LittleEndian.PutUint64(image[offset(int32(64+i))+40:], uint64(i)) // its own request
		sign(image[offset(int32(64+i)):][:half], 0)
	}
	// The floor of its key is before all of them.
	for at := offset(0); at < offset(64); at += slotSize {
		if image[at+4] == kindKeys {
			clear(image[at+16:][:slotSize-16])
			sign(image[at:][:slotSize], 0)
		}
	}
	opened := make(chan Status)
	go func() {
		opened <- reopen(t, &memDisk{image: image}, config(), after(3*time.Minute)).Status()
	}()
	select {
	case s := <-opened:
		if s.Reason != "" || s.Live < many {
			t.Errorf("got %+v", s)
		}
	case <-time.After(lab.Patience):
		t.Error("it does not open")
	}
}

// TestHostileLength: a sparse file of the maximum length costs no more than the longest journal.
func TestHostileLength(t *testing.T) {
	for name, size := range map[string]int64{"a slot too long": offset(maxRoom + 1), "1 TiB": 1 << 40,
		"4 TiB and more": 1<<42 + 1} {
		t.Run(name, func(t *testing.T) {
			path := created(t, config())
			if err := os.Truncate(path, size); err != nil {
				t.Fatalf("this file system has no such files: %v", err)
			}
			var before, behind runtime.MemStats
			runtime.ReadMemStats(&before)
			j := mustOpen(t, path, config(), after(time.Hour))
			runtime.ReadMemStats(&behind)
			if took := behind.TotalAlloc - before.TotalAlloc; took > 64<<20 {
				t.Errorf("it took %d MiB", took>>20)
			}
			wantFloor(t, j, after(time.Hour), after(time.Hour+30*time.Second), damaged)
			if s := j.Status(); s.Room != 64 || !strings.Contains(s.Damaged, "not kept") {
				t.Errorf("got %+v", s)
			}
			if fi, err := os.Stat(path); err != nil || fi.Size() != offset(64) {
				t.Errorf("got %v, %v", fi, err)
			}
			if _, err := os.Stat(path + ".damaged"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it was kept: %v", err)
			}
			j.Close()
			if s := mustOpen(t, path, config(), after(time.Hour)).Status(); s.Damaged != "" || s.Room != 64 {
				t.Errorf("the second time: %+v", s)
			}
		})
	}
}

// TestHolesInAFullDisk: a sparse journal that the disk has no space for is truncated to its configured size.
func TestHolesInAFullDisk(t *testing.T) {
	d := used(t)
	d.image = append(d.image, make([]byte, 1<<20)...)
	d.fail = func(o op) error {
		if o.kind == "grow" && o.off > offset(64) {
			return errBroken
		}
		return nil
	}
	c := config()
	c.BootID = "next"
	if s := reopen(t, d, c, start).Status(); s.Room != 64 || s.Reason != rebooted.String() {
		t.Errorf("got %+v", s)
	}
}

// TestGrowsNoFurther: the longest journal reports that it is full instead of growing.
func TestGrowsNoFurther(t *testing.T) {
	j, d := fresh(t, config())
	j.store.room.Store(maxRoom - minGrowth)
	j.store.next = maxRoom - minGrowth
	d.fail = failing("write") // nothing may be written there
	wantErr(t, "the last growth", j.store.grow(), nil)
	if err := j.store.grow(); !errors.Is(err, errLong) || j.store.room.Load() != maxRoom {
		t.Errorf("got %v, room for %d", err, j.store.room.Load())
	}
	j.memory.topics.slots, j.memory.topics.vacant = make([]int32, maxNames/perSlot+1), nil
	if _, err := j.memory.name(j.store, &j.memory.topics, [16]byte{9}); err == nil ||
		!strings.Contains(err.Error(), "names") {
		t.Errorf("got %v", err)
	}
}

// TestLinkedJournal: a journal with a second name may be another user's file.
func TestLinkedJournal(t *testing.T) {
	path := created(t, config())
	victim := filepath.Join(filepath.Dir(path), "victim")
	wantErr(t, "Link", os.Link(path, victim), nil)
	before, err := os.ReadFile(victim)
	wantErr(t, "ReadFile", err, nil)
	c := config()
	c.BootID = "next"
	j, err := Open(path, c, start)
	if err == nil {
		j.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "hard links") {
		t.Errorf("got %v", err)
	}
	if behind, err := os.ReadFile(victim); err != nil || !bytes.Equal(before, behind) {
		t.Errorf("the file that has another name was changed; %v", err)
	}
}
