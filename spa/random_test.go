package spa

import (
	"bytes"
	"math"
	"testing"
	"testing/cryptotest"

	"sallyport/keys/service"
)

// chiSquareLimit bounds a chi-square statistic with df degrees of freedom: a fair one exceeds it once in 10^9 (Wilson
// and Hilferty's approximation, six standard deviations).
func chiSquareLimit(df int) float64 {
	k := 2 / (9 * float64(df))
	return float64(df) * math.Pow(1-k+6*math.Sqrt(k), 3)
}

// A histogram counts values; its chi-square tests whether all are equally likely.
type histogram []int

func (h histogram) chiSquare() float64 {
	total := 0
	for _, n := range h {
		total += n
	}
	want := float64(total) / float64(len(h))
	sum := 0.0
	for _, n := range h {
		sum += (float64(n) - want) * (float64(n) - want) / want
	}
	return sum
}

func (h histogram) fair() bool { return h.chiSquare() <= chiSquareLimit(len(h)-1) }

// sample counts the bytes at each position of packets, from their start and from their end, and the packets' lengths.
type sample struct {
	fromStart, fromEnd [MaxLen][256]int
	lengths            [MaxLen - MinLen + 1]int
}

func (s *sample) add(packet []byte) {
	for i, b := range packet {
		s.fromStart[i][b]++
		s.fromEnd[len(packet)-1-i][b]++
	}
	s.lengths[len(packet)-MinLen]++
}

func (s *sample) check(t *testing.T) {
	t.Helper()
	for i := range MaxLen {
		if h := histogram(s.fromStart[i][:]); !h.fair() {
			t.Errorf("byte %d from the start is not random: chi-square %.0f", i, h.chiSquare())
		}
		if h := histogram(s.fromEnd[i][:]); !h.fair() {
			t.Errorf("byte %d from the end is not random: chi-square %.0f", i, h.chiSquare())
		}
	}
	if h := histogram(s.lengths[:]); !h.fair() {
		t.Errorf("lengths are not uniform: chi-square %.0f", h.chiSquare())
	}
}

const sampleSize = 100_000

// All packets have the same request at the same instant, so that only nonces, padding and keys vary.
func TestPacketsAreIndistinguishableFromRandom(t *testing.T) {
	short := Request{Type: TypeOpen, Time: testNow, Services: []service.Service{{Name: "a"}}}
	long := openSSH()
	long.Services = ports(1, 8)
	for name, r := range map[string]Request{"short": short, "long": long} {
		t.Run(name, func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, 1)
			s := &sample{}
			for range sampleSize {
				s.add(mustSeal(t, r, alice()))
			}
			s.check(t)
		})
	}
}

func TestReceiptsAreIndistinguishableFromRandom(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 2)
	knock := mustOpen(t, mustSeal(t, openSSH(), alice()))
	s := &sample{}
	for i := range sampleSize {
		knock.Len = MinLen + i%len(s.lengths)
		s.add(mustSealReceipt(t, deniedReceipt(), knock))
	}
	s.check(t)
}

// The test above proves something only if it detects a packet that is not random.
func TestChiSquareSeesABias(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 3)
	var bit, fair histogram = make([]int, 256), make([]int, 256)
	for range sampleSize {
		b := mustSeal(t, openSSH(), alice())[0]
		fair[b]++
		bit[b&^1]++
	}
	if !fair.fair() || bit.fair() {
		t.Errorf("chi-square %.0f for fair bytes, %.0f for a constant bit", fair.chiSquare(), bit.chiSquare())
	}
}

func TestEveryLengthComesUp(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 4)
	seen := map[int]bool{}
	for range 10_000 {
		seen[len(mustSeal(t, openSSH(), alice()))] = true
	}
	if len(seen) != 256-168+1 || !seen[168] || !seen[256] {
		t.Errorf("%d lengths, want all from 168 to 256", len(seen))
	}
}

// Two packets of one client have nothing in common by which a stranger could link them.
func TestPacketsOfAClientShareNoBytes(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 5)
	a, b := mustSeal(t, openSSH(), alice()), mustSeal(t, openSSH(), alice())
	for at := 0; at+4 <= len(a); at++ {
		if bytes.Contains(b, a[at:at+4]) {
			t.Errorf("both contain %x", a[at:at+4])
		}
	}
}
