package check

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestOwnPorts: a port may be picked if it is between the two numbers and in no reserved range.
func TestOwnPorts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		first, last := 100+r.IntN(10), 105+r.IntN(10)
		var parts []string
		reserved := map[int]bool{}
		for range r.IntN(3) {
			low, high := 98+r.IntN(20), 0
			if high = low + r.IntN(4); high == low {
				parts = append(parts, fmt.Sprint(low))
			} else {
				parts = append(parts, fmt.Sprintf("%d-%d", low, high))
			}
			for port := low; port <= high; port++ {
				reserved[port] = true
			}
		}
		o := lab.Value(parseOwnPorts(fmt.Sprintf("%d\t%d\n", first, last), strings.Join(parts, ",")+"\n"))(t)
		p := service.Ports{Proto: service.UDP, Low: uint16(95 + r.IntN(10)), High: uint16(105 + r.IntN(15))}
		want := service.Ports{Proto: service.UDP}
		for port := int(p.Low); port <= int(p.High); port++ {
			if first <= port && port <= last && !reserved[port] {
				if want.Low == 0 {
					want.Low = uint16(port)
				}
				want.High = uint16(port)
			}
		}
		if got, some := o.picked(p); got != want || some != (want.Low != 0) {
			t.Fatalf("%d to %d without %v: of %v got %v, %v, want %v", first, last, parts, p, got, some, want)
		}
	}
	for _, bad := range [][2]string{{"", ""}, {"1", ""}, {"a b", ""}, {"1 2", "x"}, {"1 2", "1-x"},
		{"1 70000", ""}, {"1 2", "70000"}} {
		if _, err := parseOwnPorts(bad[0], bad[1]); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

// TestUnseenAsRoot: root gets no advice to become root.
func TestUnseenAsRoot(t *testing.T) {
	for uid, want := range map[int]bool{0: false, 1000: true} {
		h := &host{uid: uid}
		h.notSeen("the rule sets of other tools", errors.New("a program is missing"))
		found := checkUnseen(h)
		if len(found) != 1 || strings.Contains(found[0].Advice, "as root") != want || found[0].Advice == "" {
			t.Errorf("user %d: got %+v", uid, found)
		}
	}
}
