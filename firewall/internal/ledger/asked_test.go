package ledger

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// reads checks when the one grant of the ledger in dir was asked for, as the next start reads it.
func reads(t *testing.T, what, dir string, now, want time.Time) {
	t.Helper()
	l := lab.Value(Open(dir, "boot", 4))(t)
	defer l.Close()
	hs, err := l.Read(now)
	if err != nil || len(hs) != 1 {
		t.Fatalf("%s: got %d grants, %v", what, len(hs), err)
	}
	if got := hs[0].Asked; !got.Equal(want) {
		t.Errorf("%s: it was asked for at %v, want %v", what, got, want)
	}
}

// TestAskedIsKept: the ledger keeps when a grant was asked for. If anything else than the same version wrote its record
// last, that is not known.
func TestAskedIsKept(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	asked := now.Add(-time.Minute).Round(0)
	l := lab.Value(Open(dir, "boot", 4))(t)
	defer l.Close()
	h := &Holding{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(time.Hour),
		Ports: []service.Ports{ports("tcp/22")}, Asked: asked, Slot: 2}
	lab.Must(t, l.Write(h, now))
	reads(t, "as it was written", dir, now, asked)

	h.Until, h.Asked = now.Add(2*time.Hour), asked.Add(time.Second)
	lab.Must(t, l.Write(h, now))
	reads(t, "a later request", dir, now, asked.Add(time.Second))

	h.Until, h.Asked = now.Add(3*time.Hour), time.Time{}
	lab.Must(t, l.Write(h, now)) // as an earlier version does
	reads(t, "the record alone is written", dir, now, time.Time{})

	h.Asked = asked
	lab.Must(t, l.Write(h, now))
	var b [1]byte
	at := l.askedOffset() + 2*askedSize + 7
	_, err := l.File.ReadAt(b[:], at)
	lab.Must(t, err)
	b[0]++
	_, err = l.File.WriteAt(b[:], at)
	lab.Must(t, err)
	reads(t, "a damaged time", dir, now, time.Time{})
}

// TestAskedOfAnEarlierVersion: grants of a ledger that ends behind its records stay. When they were asked for is not
// known.
func TestAskedOfAnEarlierVersion(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	l := lab.Value(Open(dir, "boot", 4))(t)
	h := &Holding{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"), Until: now.Add(time.Hour),
		Ports: []service.Ports{ports("tcp/22")}, Slot: 3}
	lab.Must(t, l.Write(h, now))
	lab.Must(t, l.Close())
	lab.Must(t, os.Truncate(filepath.Join(dir, FileName), HeaderSize+4*RecordSize))
	reads(t, "before", dir, now, time.Time{})

	l = lab.Value(Open(dir, "boot", 4))(t)
	defer l.Close()
	h.Asked = now.Round(0)
	lab.Must(t, l.Write(h, now))
	reads(t, "after", dir, now, h.Asked)
}
