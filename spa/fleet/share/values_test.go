package share_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

var at = time.Unix(1795000000, 123456789)

func someOutcome() *share.Outcome {
	return &share.Outcome{Key: 7, Client: "alice", From: netip.MustParseAddr("192.0.2.7"),
		LetIn: netip.MustParsePrefix("198.51.100.0/24"), Services: []string{"ssh", "tcp/8443"}, Receipt: []byte{1, 2},
		First: at, Until: at.Add(time.Hour)}
}

func someFloor() *share.Floor {
	return &share.Floor{Topics: []share.TopicFloor{{Topic: [16]byte{1}, Stamp: at}, {Topic: [16]byte{2}, Stamp: at}},
		Client: "alice", Of: netip.MustParsePrefix("2001:db8::1/128"), Services: []string{"ssh"}, Cut: true}
}

// TestOutcome: another member reads what one wrote, and the least that there can be.
func TestOutcome(t *testing.T) {
	least := someOutcome()
	least.LetIn, least.Until = netip.Prefix{}, time.Time{}
	for _, want := range []*share.Outcome{someOutcome(), least} {
		text := lab.Value(want.Encode())(t)
		if got := lab.Value(share.ParseOutcome(text))(t); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestOutcomeBounds: an outcome that no member can mean is neither written nor read.
func TestOutcomeBounds(t *testing.T) {
	for what, change := range map[string]func(*share.Outcome){
		"no key":             func(o *share.Outcome) { o.Key = 0 },
		"no client":          func(o *share.Outcome) { o.Client = "" },
		"a client's name":    func(o *share.Outcome) { o.Client = "Alice" },
		"no source":          func(o *share.Outcome) { o.From = netip.Addr{} },
		"a zone":             func(o *share.Outcome) { o.From = netip.MustParseAddr("fe80::1%2") },
		"a mapped source":    func(o *share.Outcome) { o.From = netip.MustParseAddr("::ffff:192.0.2.7") },
		"bits after":         func(o *share.Outcome) { o.LetIn = netip.MustParsePrefix("198.51.100.1/24") },
		"a network too long": func(o *share.Outcome) { o.LetIn = netip.PrefixFrom(o.From, 33) },
		"no services":        func(o *share.Outcome) { o.Services = nil },
		"a range":            func(o *share.Outcome) { o.Services = []string{"tcp/1-2"} },
		"many services":      func(o *share.Outcome) { o.Services = make([]string, share.MaxServices+1) },
		"no receipt":         func(o *share.Outcome) { o.Receipt = nil },
		"a long receipt":     func(o *share.Outcome) { o.Receipt = make([]byte, share.MaxReceipt+1) },
		"no stamp":           func(o *share.Outcome) { o.First = time.Time{} },
		"before 1970":        func(o *share.Outcome) { o.First = time.Unix(-1, 0) },
		"after 2262":         func(o *share.Outcome) { o.Until = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		o := someOutcome()
		change(o)
		if text, err := o.Encode(); err == nil {
			t.Errorf("%s: written as %s", what, text)
		}
	}
}

// TestFloor: another member reads what one wrote, and the least that there can be.
func TestFloor(t *testing.T) {
	for _, want := range []*share.Floor{someFloor(), {Topics: someFloor().Topics[:1], Client: "alice"},
		{Topics: someFloor().Topics, Of: someFloor().Of}} {
		text := lab.Value(want.Encode())(t)
		if got := lab.Value(share.ParseFloor(text))(t); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestFloorBounds: a floor that no member can mean is neither written nor read.
func TestFloorBounds(t *testing.T) {
	for what, change := range map[string]func(*share.Floor){
		"no topics":       func(f *share.Floor) { f.Topics = nil },
		"many topics":     func(f *share.Floor) { f.Topics = make([]share.TopicFloor, share.MaxFloors+1) },
		"a topic of zero": func(f *share.Floor) { f.Topics[1].Topic = [16]byte{} },
		"no stamp":        func(f *share.Floor) { f.Topics[1].Stamp = time.Time{} },
		"of nothing":      func(f *share.Floor) { f.Client, f.Of = "", netip.Prefix{} },
		"a client's name": func(f *share.Floor) { f.Client = "a/b" },
		"bits after":      func(f *share.Floor) { f.Of = netip.MustParsePrefix("192.0.2.1/24") },
		"for no service":  func(f *share.Floor) { f.Services = []string{} },
		"no service":      func(f *share.Floor) { f.Services = []string{""} },
	} {
		f := someFloor()
		change(f)
		if text, err := f.Encode(); err == nil {
			t.Errorf("%s: written as %s", what, text)
		}
	}
}

// TestLargestFloor: what is within the limits fits into a message once it is sealed.
func TestLargestFloor(t *testing.T) {
	f := someFloor()
	f.Topics, f.Services = nil, nil
	for i := range share.MaxFloors {
		f.Topics = append(f.Topics, share.TopicFloor{Topic: [16]byte{byte(i), 1}, Stamp: at})
	}
	for range share.MaxServices {
		f.Services = append(f.Services, strings.Repeat("s", 32))
	}
	text := lab.Value(f.Encode())(t)
	place := "f/" + hexName
	sealed := key.Seal(share.Prefix(keys.FleetID{1}, "gw")+place, append(make([]byte, 16), text...))
	m := share.Message{Kind: share.Event, Key: place, Value: sealed, Revision: 1<<63 - 1}
	if line := lab.Value(m.Line())(t); len(line) > share.MaxLine {
		t.Errorf("a line has %d bytes", len(line))
	}
}

func FuzzOutcome(f *testing.F) {
	f.Add(lab.Value(someOutcome().Encode())(f))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := share.ParseOutcome(text)
		if err != nil {
			return
		}
		if again := lab.Value(o.Encode())(t); !bytes.Equal(again, text) {
			t.Errorf("%q is written as %q", text, again)
		}
	})
}

func FuzzFloor(f *testing.F) {
	f.Add(lab.Value(someFloor().Encode())(f))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := share.ParseFloor(text)
		if err != nil {
			return
		}
		if again := lab.Value(o.Encode())(t); !bytes.Equal(again, text) {
			t.Errorf("%q is written as %q", text, again)
		}
	})
}

// TestLeases: the times of spa/models hold.
func TestLeases(t *testing.T) {
	for _, window := range []time.Duration{time.Second, 30 * time.Second, 10 * time.Minute} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			offset := window
			if lease := share.Lease(window); lease <= 2*window+offset+share.RetryWithin {
				t.Errorf("a request id is kept for %v: not longer than two windows, an offset and retries", lease)
			}
			if !share.Undone(at, at.Add(window), window) || !share.Undone(at, at.Add(share.RetryWithin), window) {
				t.Error("a fresh packet is taken for one whose command may have been done")
			}
			if share.Undone(at, at.Add(share.Lease(window)-window-offset), window) {
				t.Error("a command that the store may have forgotten is taken for undone")
			}
		})
	}
}
