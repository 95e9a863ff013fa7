package ledger

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// forged returns a ledger of so many slots, in its own directory, with these records under valid sums.
func forged(t testing.TB, slots int, records ...[]byte) *Ledger {
	t.Helper()
	l := lab.Value(Open(t.TempDir(), "boot", slots))(t)
	t.Cleanup(func() { l.Close() })
	for slot, r := range records {
		var b [RecordSize]byte
		copy(b[:], r)
		copy(b[sumOffset:], l.sum(b[:sumOffset]))
		lab.Must(t, l.put(slot, &b))
	}
	return l
}

// sshRecord returns what encode writes for an hour of alice's ssh, without the sum.
func sshRecord(t testing.TB, now time.Time) []byte {
	t.Helper()
	boot := lab.Value(clock.Boot())(t)
	h := &Holding{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}}
	var b [RecordSize]byte
	new(Ledger).encode(&b, h, now.Add(time.Hour), boot+time.Hour)
	return b[:sumOffset]
}

// TestForgedRecord: an attacker who took over the daemon can write any record under a valid sum. A record that encode
// would not have written is no grant.
func TestForgedRecord(t *testing.T) {
	now := time.Now()
	change := func(at int, b ...byte) func([]byte) { return func(r []byte) { copy(r[at:], b) } }
	for _, test := range []struct {
		name  string
		forge func(r []byte)
		good  bool
	}{
		{"as it was written", func([]byte) {}, true},
		{"no ranges", change(98, 0), false},
		{"five ranges", change(98, 5), false},
		{"200 ranges", change(98, 200), false},
		{"a client of 33 bytes", change(32, 33), false},
		{"a client of 255 bytes", change(32, 255), false},
		{"a service of 33 bytes", change(65, 33), false},
		{"a service of 255 bytes", change(65, 255), false},
		{"bytes behind the client", change(64, 1), false},
		{"bytes behind the service", change(97, 1), false},
		{"bytes behind the ranges", change(118, 1), false},
		{"a byte before the sum", change(119, 1), false},
		{"no protocol", change(99, 0), false},
		{"ICMP", change(99, 1), false},
		{"port 0", change(100, 0, 0), false},
		{"a range that ends before it starts", change(102, 0, 21), false},
		{"ended by the wall clock", change(0, make([]byte, 8)...), false},
		{"ended by the boot clock", change(8, make([]byte, 8)...), false},
		{"an end before 1970", change(0, 0xff), false},
		{"a boot clock below zero", change(8, 0x80, 0, 0, 0, 0, 0, 0, 0), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := sshRecord(t, now)
			test.forge(r)
			l := forged(t, 4, r)
			hs, err := l.Read(now)
			if err != nil || (len(hs) == 1) != test.good || len(hs)+len(l.free) != 4 {
				t.Errorf("got %d grants, %d free slots, %v", len(hs), len(l.free), err)
			}
		})
	}
}

// TestForgedRanges: an attacker can try records until the sum itself reads as ranges, past the end of the record.
func TestForgedRanges(t *testing.T) {
	now := time.Now()
	l := forged(t, 4)
	for n := range 1 << 14 {
		r := sshRecord(t, now)
		for at := 99; at < sumOffset; at += 5 {
			copy(r[at:], []byte{byte(service.TCP), 0, 22, 0, 22})
		}
		r[98] = byte(MaxRanges + 1 + n%200)
		if form := r[98] &^ (ofNetwork | ofLent | forOneFlow); form == withDestination || form == ledElsewhere {
			continue // a record of another form
		}
		binary.BigEndian.PutUint16(r[6:], uint16(n)) // nanoseconds of its end
		if h, ok := l.decode(append(r, l.sum(r)...), 0, now); ok {
			t.Fatalf("got %v", h)
		}
	}
}

// TestForgedTwice: if a grant had two records, one would outlive its revocation.
func TestForgedTwice(t *testing.T) {
	now := time.Now()
	l := forged(t, 4, sshRecord(t, now), sshRecord(t, now), sshRecord(t, now))
	hs, err := l.Read(now)
	if err != nil || len(hs) != 1 || len(l.free) != 3 {
		t.Fatalf("got %d grants, %d free slots, %v, want one grant", len(hs), len(l.free), err)
	}
	lab.Must(t, l.Erase(hs[0]))
	if hs, err = l.Read(now); err != nil || len(hs) != 0 {
		t.Errorf("after its revocation the grant is still in the ledger %d times; %v", len(hs), err)
	}
}

// TestForgedFlood: more ports than the kernel's sets can hold must not keep the guard from loading.
func TestForgedFlood(t *testing.T) {
	now := time.Now()
	var records [][]byte
	for i := range 64 {
		r := sshRecord(t, now)
		r[16+15] = byte(i) + 1
		binary.BigEndian.PutUint16(r[100:], 1)
		binary.BigEndian.PutUint16(r[102:], 65535)
		records = append(records, r)
	}
	l := forged(t, 64, records...)
	book := lab.Value(l.Book(now, 65535*2))(t)
	if n := len(book.elements); n != 65535*2 || len(l.free) != 62 {
		t.Errorf("got %d elements and %d free slots, want those of two grants", n, len(l.free))
	}
	if hs, err := l.Read(now); err != nil || len(hs) != 2 {
		t.Errorf("the ledger still has %d grants, %v", len(hs), err)
	}
}

// FuzzLedger: no content of the ledger prevents a start, and every grant read from it can be written and read again
// unchanged.
func FuzzLedger(f *testing.F) {
	now := time.Now()
	good := sshRecord(f, now)
	f.Add(good)
	f.Add(bytes.Repeat([]byte{0xff}, RecordSize))
	f.Add(append(bytes.Clone(good), good...))
	for _, at := range []int{0, 8, 16, 32, 65, 98, 99, 119} {
		r := bytes.Clone(good)
		r[at] ^= 0xff
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var records [][]byte
		for len(b) > 0 && len(records) < 8 {
			n := min(sumOffset, len(b))
			records, b = append(records, b[:n]), b[n:]
		}
		l := forged(t, 8, records...)
		book := lab.Value(l.Book(now, 1<<12))(t)
		if free, _ := l.Spare(); book.Len()+free != 8 {
			t.Fatalf("%d grants and %d free slots of 8", book.Len(), free)
		}
		for h := range book.All() {
			if err := h.Check(now); err != nil {
				t.Errorf("the ledger restores a grant that could not be given: %v", err)
			}
			if !slices.Contains(slices.Collect(book.Of(h.Client)), h) {
				t.Errorf("nothing can revoke %+v", h)
			}
		}
	})
}
