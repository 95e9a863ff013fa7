package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/spa/lab"
	"sallyport/spa/stun"
)

// browsers is knocks with those of browsers.
func browsers() Config {
	c := knocks
	c.Browser = true
	return c
}

// TestBrowsers: a sniffer and a bound socket take the packet out of a browser's check if they are to, and otherwise do
// not even see it. Between the lengths of packets and checks nothing is seen, and what has a check's length and is none
// is counted.
func TestBrowsers(t *testing.T) {
	client, gateway := lab.Pair(t)
	plain, both := read(t, listen(t, gateway, knocks)), read(t, listen(t, gateway, browsers()))
	b := bound(t, gateway, browsers())
	packets := readBound(t, b)
	check := lab.STUN{Packet: payload(180), Local: "self", Password: "any"}
	message := check.Check()
	for _, to := range []netip.AddrPort{gateway4, gateway6} {
		from := client4
		if to.Addr().Is6() {
			from = client6
		}
		before := [3]Stats{plain.Stats(), both.Stats(), b.Stats()}
		conn := dialUDP(t, client, from, to)
		for _, data := range [][]byte{payload(257), payload(stun.MinLen - 1), payload(stun.MinLen), payload(stun.MaxLen),
			payload(stun.MaxLen + 1), message, payload(256)} {
			_, err := conn.Write(data)
			lab.Must(t, err)
		}
		boundNext := func() Packet {
			select {
			case p := <-packets:
				return p
			case <-time.After(lab.Patience):
				t.Fatalf("nothing came; %+v", b.Stats())
				return Packet{}
			}
		}
		for _, next := range []func() Packet{func() Packet { return both.expect(t) }, boundNext} {
			if p := next(); !bytes.Equal(p.Data, check.Packet) || !bytes.Equal(p.Frame, message) || p.From != from {
				t.Errorf("got %+v", p)
			}
			if p := next(); !bytes.Equal(p.Data, payload(256)) || p.Frame != nil {
				t.Errorf("got %+v", p)
			}
		}
		if p := plain.expect(t); !bytes.Equal(p.Data, payload(256)) || p.Frame != nil {
			t.Errorf("got %+v", p)
		}
		want := Stats{Received: 4, Passed: 2, Framed: 1, Unframed: 2}
		plain.waitFor(t, before[0], Stats{Received: 1, Passed: 1})
		both.waitFor(t, before[1], want)
		want.KernelDrops = 3 // by its filter
		if got := gain(before[2], b.Stats()); got != want {
			t.Errorf("bound: counted %+v, want %+v", got, want)
		}
		lab.Must(t, conn.Close())
	}
}

// TestBrowserConfig: a candidate cannot be as long as a check.
func TestBrowserConfig(t *testing.T) {
	c := browsers()
	c.MaxLen = stun.MinLen
	if c.check() == nil {
		t.Error("accepted")
	}
	c.MaxLen = stun.MinLen - 1
	lab.Must(t, c.check())
}

// TestBrowsersInAFile: a capture file yields the packet in a check, if browsers are wanted.
func TestBrowsersInAFile(t *testing.T) {
	check := lab.STUN{Packet: payload(180), Local: "self", Password: "any"}
	ip := packet4(client4, gateway4, check.Check())
	for wanted, verdict := range map[bool]verdict{true: framed, false: notForUs} {
		c := browsers()
		c.Browser = wanted
		f := &File{config: c, frames: unframer{longest: c.MaxLen}, decoder: newDecoder()}
		p, v := f.judge(ip)
		if v != verdict || wanted && !bytes.Equal(p.Data, check.Packet) {
			t.Errorf("wanted %v: got %v, %+v", wanted, v, p)
		}
	}
	order := binary.LittleEndian
	file := slices.Concat(ngHeader(order), ngRaw(order, 9, 0),
		ngCut(order, uint64(captured.UnixNano()), len(ip), ip[:100]))
	f := lab.Value(OpenFile(bytes.NewReader(file), browsers()))(t)
	if _, _, err := f.Read(); !errors.Is(err, io.EOF) || f.Stats().Cut != 1 || f.Stats().Unframed != 0 {
		t.Errorf("one that was captured in part: got %v and %+v", err, f.Stats())
	}
}
