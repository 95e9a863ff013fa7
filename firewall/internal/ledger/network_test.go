package ledger

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// networkRecord returns what encode writes for an hour of alice's ssh from a network, without the sum.
func networkRecord(t *testing.T, network string, lent bool, to string, now time.Time) []byte {
	t.Helper()
	p := netip.MustParsePrefix(network)
	h := &Holding{Client: "alice", Service: "ssh", Source: p.Addr(), Lent: lent,
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}}
	if !p.IsSingleIP() {
		h.Bits = uint8(p.Bits())
	}
	if to != "" {
		h.To = netip.MustParseAddr(to)
	}
	var b [RecordSize]byte
	new(Ledger).encode(&b, h, now.Add(time.Hour), lab.Value(clock.Boot())(t)+time.Hour)
	return b[:sumOffset]
}

// TestNetworkRecord: a grant for a network is read as it was written, and earlier versions take its record for damaged:
// they know no more than 4 ranges, or one and a destination, in byte 98.
func TestNetworkRecord(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		network string
		lent    bool
		to      string
		good    bool
	}{
		{"198.51.100.0/24", false, "", true},
		{"198.51.100.128/31", true, "", true},
		{"198.0.0.0/8", false, "192.0.2.1", true},
		{"203.0.113.9/32", true, "", true},
		{"2001:db8::/32", false, "", true},
		{"2001:db8:1:2::/64", true, "2001:db8::1", true},
		{"2001:db8::9/128", true, "", true},
		{"128.0.0.0/7", true, "", false},
		{"2001:db8::/80", true, "", false},
		{"2001::/16", true, "", false},
		{"0.0.0.0/8", true, "", false},
		{"127.0.0.0/24", true, "", false},
		{"127.0.0.1/32", true, "", false},
		{"224.0.0.0/24", true, "", false},
		{"fe80::/64", true, "", false},
		{"::/64", true, "", false},
		{"198.51.100.7/24", false, "", false},
		{"2001:db8::1:0:0:0/48", false, "", false},
	} {
		r := networkRecord(t, test.network, test.lent, test.to, now)
		if earlier := r[98]; earlier <= MaxRanges || earlier == withDestination {
			t.Errorf("%s: earlier versions read byte 98 as %#x", test.network, earlier)
		}
		hs, err := forged(t, 4, r).Read(now)
		if err != nil || (len(hs) == 1) != test.good {
			t.Errorf("%s: got %d grants, %v", test.network, len(hs), err)
			continue
		}
		if test.good {
			p := netip.MustParsePrefix(test.network)
			if h := hs[0]; h.Source != p.Addr() || h.Lent != test.lent || !p.IsSingleIP() && int(h.Bits) != p.Bits() {
				t.Errorf("%s is read as %+v", test.network, h)
			}
		}
	}
	for at := range sumOffset { // no single byte turns an address into a network
		for _, bit := range []byte{ofNetwork, ofLent, ofNetwork | ofLent} {
			r := sshRecord(t, now)
			r[98] |= bit
			r[at] ^= 24
			if hs, _ := forged(t, 4, r).Read(now); len(hs) == 1 && hs[0].Bits != 0 && at != 16+bitsOffset {
				t.Errorf("byte %d with %#x: %+v", at, bit, hs[0])
			}
		}
	}
}
