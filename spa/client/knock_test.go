package client

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
)

func TestOpenedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		c := open()
		c.For = 10 * time.Minute
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, c))
		if a.Verdict != Opened || a.Err != nil || a.Tries != 1 || a.Gateway != gate4 || a.Offset != 0 {
			t.Errorf("got %+v, want it opened by %v with one packet", a, gate4)
		}
		if want := start.Add(30 * time.Second); !a.Until(0).Equal(want) || !a.Until(1).IsZero() {
			t.Errorf("until %v, %v; want %v and nothing", a.Until(0), a.Until(1), want)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("returned after %v, want at once", waited)
		}
		knocks, to, _ := g.seen()
		if k := knocks[0]; k.Type != spa.TypeOpen || k.For != c.For || k.Source.IsValid() || len(k.Services) != 1 ||
			k.Services[0] != ssh[0] {
			t.Errorf("the gateway read %+v", k.Request)
		}
		if want := netip.AddrPortFrom(gate4, 62201); to[0] != want {
			t.Errorf("knocked on %v, want %v", to[0], want)
		}
	})
}

func TestVerdicts(t *testing.T) {
	for status, want := range map[spa.Status]Verdict{
		spa.Granted: Opened, spa.Closed: Closed, spa.ReasonNoService: Refused, spa.Status(200): Refused,
	} {
		t.Run(status.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return status }
				c := open()
				if status == spa.Closed {
					c.Type = spa.TypeClose
				}
				if a := knockOnce(t, mustPrepare(t, g, n, c)); a.Verdict != want || a.Receipt.Status != status {
					t.Errorf("got %v, want %v", a.Verdict, want)
				}
			})
		})
	}
}

// All packets of a command are one request, and no two are equal.
func TestRetriesAreOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.decide = func(_ spa.Knock, _ netip.AddrPort, n int) spa.Status {
			if n < 9 {
				return 0
			}
			return spa.Granted
		}
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Opened || a.Tries != 10 {
			t.Errorf("got %v after %d packets, want open after 10", a.Verdict, a.Tries)
		}
		knocks, _, _ := g.seen()
		for i, k := range knocks[1:] {
			before := knocks[i]
			if k.ID != before.ID || k.Digest() != before.Digest() {
				t.Errorf("packet %d is another request", i+1)
			}
			if k.Nonce == before.Nonce || !k.Time.After(before.Time) {
				t.Errorf("packet %d has no nonce or stamp of its own", i+1)
			}
		}
	})
}

func TestCommandsAreSeparateRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		knockOnce(t, mustPrepare(t, g, n, open()))
		knockOnce(t, mustPrepare(t, g, n, open()))
		if knocks, _, _ := g.seen(); knocks[0].ID == knocks[1].ID {
			t.Error("two commands have one request id")
		}
	})
}

func TestNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Silent || !errors.Is(a.Err, ErrNoAnswer) || a.Tries != 16 || a.Receipt != nil {
			t.Errorf("got %+v, want silence after 16 packets", a)
		}
		if waited := time.Since(start); waited != DefaultTimeout {
			t.Errorf("waited %v, want %v", waited, DefaultTimeout)
		}
		_, _, at := g.seen()
		if first := at[1].Sub(at[0]); first < 100*time.Millisecond || first > 200*time.Millisecond {
			t.Errorf("the first retry came after %v", first)
		}
	})
}

func TestTimeoutIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		c := open()
		c.Timeout = 700 * time.Millisecond
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, c))
		if waited := time.Since(start); waited != c.Timeout || a.Tries != 16 {
			t.Errorf("waited %v with %d packets, want %v with 16", waited, a.Tries, c.Timeout)
		}
	})
}

// A gateway remembers a command for as long as a packet stamped within 30 s of the first can be fresh. A later packet
// states when the command began, or the gateway would treat it as a new one. The packets are spread over all the time
// allowed: a gateway may come back only at its end.
func TestLongTimeout(t *testing.T) {
	for name, receipts := range map[string]bool{"receipts": true, "none": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				g.profile.Receipts = receipts
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
				n.tcp = func(netip.Addr, netip.AddrPort) error { return syscall.ECONNREFUSED }
				c := open()
				c.Timeout = 5 * time.Minute
				start := time.Now()
				a := knockOnce(t, mustPrepare(t, g, n, c))
				if waited := time.Since(start); waited != c.Timeout || a.Tries != 16 {
					t.Errorf("waited %v with %d packets, want %v with 16", waited, a.Tries, c.Timeout)
				}
				knocks, _, _ := g.seen()
				if last := knocks[15].Time.Sub(knocks[0].Time); last < 4*time.Minute {
					t.Errorf("the last packet is stamped %v after the first", last)
				}
				for i, k := range knocks {
					late := k.Time.Sub(knocks[0].Time) > 25*time.Second
					if k.ID != knocks[0].ID || late != k.First.Equal(knocks[0].Time) || !late && !k.First.IsZero() {
						t.Errorf("packet %d is stamped %v after the first, and tells %v", i, k.Time.Sub(knocks[0].Time), k.First)
					}
				}
			})
		})
	}
}

// If the services leave no room to state when the command began, no packet is stamped too late to do without.
func TestNoRoomToGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		c := open()
		c.Timeout = 5 * time.Minute
		c.Services = []service.Service{{Name: strings.Repeat("a", 32)}, {Name: strings.Repeat("b", 7)}}
		knockOnce(t, mustPrepare(t, g, n, c))
		knocks, _, _ := g.seen()
		if last := knocks[15].Time.Sub(knocks[0].Time); last > 25*time.Second || last < 20*time.Second {
			t.Errorf("the last packet is stamped %v after the first", last)
		}
	})
}

var tooEarlyTests = map[string]struct {
	timeout, patience time.Duration
	clock             time.Duration // the gateway's, ahead of the client's
	floor             time.Duration // by the gateway's clock
	lost              int           // unanswered packets after the floor
	want              Verdict
	within            time.Duration
}{
	"long timeout":    {timeout: time.Minute, floor: 24 * time.Second, want: Opened, within: 25 * time.Second},
	"later than 30 s": {timeout: time.Minute, floor: 50 * time.Second, want: Opened, within: 51 * time.Second},
	"packets are lost then": {timeout: time.Minute, floor: 24 * time.Second, lost: 5, want: Opened,
		within: 40 * time.Second},
	"short timeout": {timeout: 10 * time.Second, floor: 24 * time.Second,
		want: Refused, within: time.Second},
	"patience": {timeout: 10 * time.Second, patience: time.Minute, floor: 24 * time.Second, lost: 5,
		want: Opened, within: 34 * time.Second},
	"patience is over": {timeout: 10 * time.Second, patience: 10 * time.Second, floor: 24 * time.Second,
		want: Refused, within: time.Second},
	"silent then": {timeout: 10 * time.Second, patience: time.Minute, floor: 24 * time.Second, lost: 1000,
		want: Silent, within: 35 * time.Second},
	"the client's clock is slow": {timeout: time.Minute, clock: 20 * time.Second, floor: 24 * time.Second, want: Opened,
		within: 45 * time.Second},
	"the client's clock is fast": {timeout: time.Minute, clock: -20 * time.Second, floor: 24 * time.Second, want: Opened,
		within: 5 * time.Second},
}

// A gateway that has just started says when it accepts packets. If the time allowed, or the command's patience, reaches
// that far, the same request is sent again then, and not earlier.
func TestTooEarly(t *testing.T) {
	for name, test := range tooEarlyTests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				g.clock = test.clock
				g.again = time.Now().Add(test.clock + test.floor)
				lost := test.lost
				g.decide = func(k spa.Knock, _ netip.AddrPort, _ int) spa.Status {
					if !k.Time.After(g.again) {
						return spa.ReasonTooEarly
					}
					if lost--; lost >= 0 {
						return 0
					}
					return spa.Granted
				}
				c := open()
				c.Timeout, c.Patience = test.timeout, test.patience
				told := 0
				c.Waiting = func(wait time.Duration) {
					if told++; wait.Round(time.Second) != test.clock+test.floor && told == 1 {
						t.Errorf("told to wait %v", wait)
					}
				}
				start := time.Now()
				a := knockOnce(t, mustPrepare(t, g, n, c))
				if waited := time.Since(start); a.Verdict != test.want || waited > test.within {
					t.Errorf("got %v after %v, want %v within %v", a.Verdict, waited, test.want, test.within)
				}
				if (told > 0) != (test.want != Refused) {
					t.Errorf("told %d times that it waits", told)
				}
				knocks, _, _ := g.seen()
				early := 0
				for _, k := range knocks {
					if k.ID != knocks[0].ID {
						t.Error("another request")
					}
					if !k.Time.After(g.again) {
						early++
					}
				}
				if early != 1 {
					t.Errorf("%d packets were too early", early)
				}
			})
		})
	}
}

// A grant that is over when the receipt arrives is not open.
func TestOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.over = true
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Over || !errors.Is(a.Err, errOver) || a.Receipt == nil {
			t.Errorf("got %v, %v", a.Verdict, a.Err)
		}
		if _, err := do(t.Context(), g.profile, open(), n); !errors.Is(err, errOver) {
			t.Errorf("Open: %v", err)
		}
		if conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 22); conn != nil || !errors.Is(err, errOver) {
			t.Errorf("Dial: %v", err)
		}
	})
}

// A datagram that is not a receipt for this command changes nothing.
func TestForgeriesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		var earlier spa.Knock
		g.decide = func(k spa.Knock, _ netip.AddrPort, _ int) spa.Status { earlier = k; return spa.Granted }
		knockOnce(t, mustPrepare(t, g, n, open()))
		former := earlier
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			real := g.receive(packet, to)
			former.Len = len(packet) // another length would be refused before the MAC is checked
			old := g.receipt(former, spa.ReasonFailed)
			flipped := bytes.Clone(real)
			flipped[len(flipped)/2] ^= 1
			for _, forged := range [][]byte{nil, {0}, packet, old, flipped, real[:len(real)-1], append(bytes.Clone(real), 0),
				make([]byte, len(real)), make([]byte, 60_000)} {
				c.deliver(forged, nil)
			}
			time.AfterFunc(50*time.Millisecond, func() { c.deliver(real, nil) })
			return nil
		}
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Opened || a.Tries != 1 || time.Since(start) != 50*time.Millisecond {
			t.Errorf("got %v after %v, want the real receipt", a.Verdict, time.Since(start))
		}
	})
}

// Anyone can send ICMP errors. They end nothing, and do not use up the processor.
func TestSocketErrorsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		var conn *fakeConn
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			conn = c
			for range 5 {
				c.deliver(nil, syscall.ECONNREFUSED)
			}
			receipt := g.receive(packet, to)
			time.AfterFunc(90*time.Millisecond, func() { c.deliver(receipt, nil) })
			return nil
		}
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Opened || a.Tries != 1 {
			t.Errorf("got %v after %d packets, want open after 1", a.Verdict, a.Tries)
		}
		n.udp = func(c *fakeConn, _ []byte, _ netip.AddrPort) error {
			conn = c
			for range 9_000 / 16 {
				c.deliver(nil, syscall.ECONNREFUSED)
			}
			return nil
		}
		start := time.Now()
		a = knockOnce(t, mustPrepare(t, g, n, open()))
		if !errors.Is(a.Err, ErrNoAnswer) || time.Since(start) != DefaultTimeout {
			t.Errorf("got %v after %v, want no answer after %v", a.Err, time.Since(start), DefaultTimeout)
		}
		if most := int(DefaultTimeout/errorPause) + 100; conn.reads > most {
			t.Errorf("read %d times, want a pause after each error", conn.reads)
		}
	})
}

func TestReceiptOfAnEarlierPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			receipt := g.receive(packet, to)
			time.AfterFunc(600*time.Millisecond, func() { c.deliver(receipt, nil) })
			return nil
		}
		g.profile.KnockPorts = []uint16{1, 2, 3}
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Opened || a.Tries != 3 || time.Since(start) != 600*time.Millisecond {
			t.Errorf("got %v after %d packets and %v, want the first packet's receipt", a.Verdict, a.Tries, time.Since(start))
		}
	})
}

func TestUnsentPacketsAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		lossless, back := n.udp, time.Now().Add(time.Second)
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			if time.Now().Before(back) {
				return syscall.ENETUNREACH
			}
			return lossless(c, packet, to)
		}
		if a := knockOnce(t, mustPrepare(t, g, n, open())); a.Verdict != Opened {
			t.Errorf("got %v, want open once the network is back", a.Err)
		}
		back = time.Now().Add(time.Hour)
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if !errors.Is(a.Err, syscall.ENETUNREACH) || a.Verdict != Silent {
			t.Errorf("got %v, want what the system said", a.Err)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		start := time.Now()
		for a := range mustPrepare(t, g, n, open()).Knock(ctx) {
			t.Errorf("got %+v, want nothing once cancelled", a)
		}
		if waited := time.Since(start); waited != 200*time.Millisecond {
			t.Errorf("returned after %v, want at once", waited)
		}
	})
}

// With 30 % loss each way, 99.9 % of the commands are answered within ten seconds.
func TestLoss(t *testing.T) {
	const commands = 3000
	answered := 0
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		lossless, random := n.udp, rand.New(rand.NewPCG(1, 2))
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status {
			if random.Float64() < 0.3 {
				return 0
			}
			return spa.Granted
		}
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			if random.Float64() < 0.3 {
				return nil
			}
			return lossless(c, packet, to)
		}
		for range commands {
			if knockOnce(t, mustPrepare(t, g, n, open())).Verdict == Opened {
				answered++
			}
		}
	})
	if answered < commands*999/1000 {
		t.Errorf("%d of %d commands were answered, want 99.9 %%", answered, commands)
	}
}

func TestSchedule(t *testing.T) {
	for _, timeout := range []time.Duration{time.Millisecond, time.Second, 10 * time.Second, time.Minute, time.Hour} {
		for range 100 {
			at := schedule(timeout)
			if len(at) != 16 || at[0] != 0 || at[15] >= timeout*98/100 || at[15] < timeout*3/4 {
				t.Fatalf("%v: got %v", timeout, at)
			}
			for i := range at[1:] {
				if at[i+1] <= at[i] {
					t.Fatalf("%v: packet %d is not after the one before: %v", timeout, i+1, at)
				}
			}
			if at[1] > firstRetry*6/5 {
				t.Fatalf("%v: the first retry waits %v", timeout, at[1])
			}
		}
		if one, other := schedule(timeout), schedule(timeout); slices.Equal(one, other) {
			t.Errorf("%v: no jitter: %v", timeout, one)
		}
	}
}

func TestOffset(t *testing.T) {
	began := time.Unix(1000, 0)
	now := began.Add(time.Second)
	for name, c := range map[string]struct{ stamp, want time.Duration }{
		"between":        {500 * time.Millisecond, 0},
		"first moment":   {0, 0},
		"last moment":    {time.Second, 0},
		"gateway ahead":  {11 * time.Second, 10 * time.Second},
		"gateway behind": {-20 * time.Second, -20 * time.Second},
	} {
		if got := offset(began.Add(c.stamp), began, now); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// The end of a grant is shown by the reader's clock, not by the gateway's.
func TestUntilIsCorrected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		g.clock = -12 * time.Second
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Offset != -12*time.Second || !a.Until(0).Equal(time.Now().Add(30*time.Second)) {
			t.Errorf("offset %v until %v, want -12s and 30s from now", a.Offset, a.Until(0))
		}
	})
}
