package capture

import (
	"errors"
	"net"
	"slices"
	"sync"
	"testing"

	"sallyport/spa/lab"
)

// TestSnifferBeside: readers and callers of other methods run while packets arrive and the sniffer is closed. It is for
// the race detector.
func TestSnifferBeside(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	in := inject(t, client, "vc", gateway, "vs")
	good := in.frame(knock(client4, gateway4))
	if got := s.Interfaces(); !slices.Equal(got, []string{"vs"}) {
		t.Errorf("the interfaces are %q", got)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				if _, err := s.Read(); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				s.Stats()
				s.Interfaces()
			}
		})
	}
	for n := range 200 {
		in.send(t, good)
		if n == 100 {
			lab.Must(t, s.Close())
		}
	}
	wg.Wait()
	if got := s.Interfaces(); len(got) != 0 {
		t.Errorf("closed, and the interfaces are %q", got)
	}
}

// TestResponderBeside: several goroutines send answers while the responder is closed. It is for the race detector.
func TestResponderBeside(t *testing.T) {
	_, gateway := lab.Pair(t)
	r := respond(t, gateway)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for n := range 200 {
				if i == 0 && n == 100 {
					r.Close()
				}
				r.Send(Packet{From: client4, To: gateway4}, payload(200), false)
				r.Send(Packet{From: client6, To: gateway6}, payload(200), false)
			}
		})
	}
	wg.Wait()
}
