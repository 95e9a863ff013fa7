package ledger

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// ledRecord returns what encode writes for an hour of alice's port 2222, which leads to a place, without the sum.
func ledRecord(t *testing.T, from string, to netip.AddrPort, once bool, now time.Time) []byte {
	t.Helper()
	h := &Holding{Client: "alice", Service: "inner", Source: netip.MustParseAddr(from), Led: to, Once: once,
		Ports: []service.Ports{{Proto: service.TCP, Low: 2222, High: 2222}}}
	var b [RecordSize]byte
	new(Ledger).encode(&b, h, now.Add(time.Hour), lab.Value(clock.Boot())(t)+time.Hour)
	return b[:sumOffset]
}

// TestLedRecord: a grant for a port that leads elsewhere is read with its place, and earlier versions, which would lead
// it to another one, take its record for damaged: they know no more than 4 ranges, or one and a destination.
func TestLedRecord(t *testing.T) {
	now := time.Now()
	for _, place := range []netip.AddrPort{
		netip.AddrPortFrom(netip.Addr{}, 8022),
		netip.MustParseAddrPort("198.51.100.5:22"),
		netip.MustParseAddrPort("[2001:db8::5]:65535"),
	} {
		for _, from := range []string{"192.0.2.2", "2001:db8::2", "fe80::1"} {
			for _, once := range []bool{false, true} {
				r := ledRecord(t, from, place, once, now)
				if earlier := r[98] &^ (ofNetwork | ofLent | forOneFlow); earlier <= MaxRanges || earlier == withDestination {
					t.Errorf("%v: earlier versions read byte 98 as %#x", place, r[98])
				}
				if from == "fe80::1" {
					r[16+linkOffset+3] = 2
				}
				hs, err := forged(t, 4, r).Read(now)
				if err != nil || len(hs) != 1 {
					t.Errorf("%v from %s: got %d grants, %v", place, from, len(hs), err)
					continue
				}
				if h := hs[0]; h.Led != place || h.Once != once || len(h.Ports) != 1 || h.Ports[0].High != 2222 {
					t.Errorf("%v from %s is read as %+v", place, from, h)
				}
			}
		}
	}
}

// TestForgedPlace: a record that names a place as no grant does is no grant.
func TestForgedPlace(t *testing.T) {
	now := time.Now()
	for name, forge := range map[string]func(r []byte){
		"to port 0":               func(r []byte) { r[102], r[103] = 0, 0 },
		"of port 0":               func(r []byte) { r[100], r[101] = 0, 0 },
		"no protocol":             func(r []byte) { r[99] = 0 },
		"and a destination":       func(r []byte) { r[98] |= withDestination },
		"and another range":       func(r []byte) { r[98] |= 1 },
		"a place without its bit": func(r []byte) { r[98] = 1 },
	} {
		r := ledRecord(t, "192.0.2.2", netip.MustParseAddrPort("198.51.100.5:22"), false, now)
		forge(r)
		hs, err := forged(t, 4, r).Read(now)
		if err != nil || len(hs) != 0 {
			t.Errorf("%s: got %d grants, %v", name, len(hs), err)
		}
	}
}
