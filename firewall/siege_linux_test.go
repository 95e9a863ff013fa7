package firewall

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/spa/lab"
)

// siege is strangers that try a guarded TCP port once a millisecond, and a guarded UDP port as often as they can.
type siege struct {
	*site
	stop               context.CancelFunc
	running            sync.WaitGroup
	tries, datagrams   atomic.Int64
	connected, arrived atomic.Int64
}

// besiege begins a siege; the site's config must guard tcp/22 and udp/5000, and a guard must be in place.
func (s *site) besiege() *siege {
	s.Helper()
	ctx, stop := context.WithCancel(s.Context())
	g := &siege{site: s, stop: stop}
	s.Cleanup(stop)
	server, client := s.udp(s.gw, "192.0.2.1:5000"), s.udp(s.client, "192.0.2.3:0")
	g.running.Go(func() {
		for b := make([]byte, 10); ; {
			if _, _, err := server.ReadFromUDPAddrPort(b); err != nil {
				return
			}
			g.arrived.Add(1)
		}
	})
	g.running.Go(func() {
		defer server.Close()
		to := netip.MustParseAddrPort("192.0.2.1:5000")
		for ctx.Err() == nil {
			for range 20 {
				client.WriteToUDPAddrPort([]byte("x"), to)
				g.datagrams.Add(1)
			}
			pause(ctx, 200*time.Microsecond) // the machine has other work too
		}
		pause(context.Background(), silence) // wait for packets in flight
	})
	g.running.Go(func() { g.dialOften(ctx) })
	return g
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (g *siege) dialOften(ctx context.Context) {
	var attempts sync.WaitGroup
	defer attempts.Wait()
	room := make(chan struct{}, 200)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		select {
		case room <- struct{}{}:
		default:
			continue
		}
		g.tries.Add(1)
		attempts.Go(func() {
			if g.isOpen("192.0.2.3", "192.0.2.1", "22") {
				g.connected.Add(1)
			}
			<-room
		})
	}
}

// lift ends the siege and fails the test if a stranger came in.
func (g *siege) lift() {
	g.Helper()
	g.stop()
	g.running.Wait()
	g.Logf("%d connections and %d datagrams were tried", g.tries.Load(), g.datagrams.Load())
	if c, a := g.connected.Load(), g.arrived.Load(); c != 0 || a != 0 {
		g.Errorf("%d of %d connections and %d of %d datagrams came in", c, g.tries.Load(), a, g.datagrams.Load())
	}
}

// during does something under siege: alice, who has a grant, keeps it and her session.
func (g *siege) during(do func()) {
	g.Helper()
	session := g.connect("192.0.2.2", "192.0.2.1", "22")
	g.goesOn()
	do()
	g.goesOn()
	g.echoes(session)
	g.connect("192.0.2.2", "192.0.2.1", "22")
}

// goesOn waits for some more attempts.
func (g *siege) goesOn() {
	g.Helper()
	before := g.tries.Load()
	lab.Eventually(g, "attempts", func() bool { return g.tries.Load() > before+20 })
}
