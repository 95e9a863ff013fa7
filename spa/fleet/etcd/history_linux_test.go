package etcd_test

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share/member"
	"sallyport/spa/fleet/share/standin"
	"sallyport/spa/lab"
)

// clients send packets to the gateways of a site, and note what those lead to.
type clients struct {
	history  standin.History
	gateways [3]atomic.Pointer[gateway]
	packets  atomic.Uint64
}

// send brings a packet of a command to a gateway.
func (c *clients) send(g *gateway, packet, command uint64) {
	var nonce [24]byte
	var request [16]byte
	binary.BigEndian.PutUint64(nonce[:], packet)
	binary.BigEndian.PutUint64(request[:], command)
	came := time.Now()
	g.Spend(&member.Spend{Key: keys.ID(1 + command%64), Nonce: nonce, Request: request,
		Decide: func(how member.How, a *member.Attempt, _ []byte) {
			if !g.Alive() {
				g.GaveUp(a)
				return
			}
			c.history.Add(nonce, request, came, how == member.Act)
			g.Settled(a, fmt.Append(nil, "outcome of ", command), time.Now().Add(time.Hour))
		}})
}

// any returns a gateway.
func (c *clients) any() *gateway { return c.gateways[rand.IntN(len(c.gateways))].Load() }

// give gives a command: its packet arrives at several gateways, and so do retries of it, and late copies.
func (c *clients) give(tick <-chan time.Time) {
	command := c.packets.Add(1)
	for packet := command; ; packet = c.packets.Add(1) {
		for range 1 + rand.IntN(3) {
			c.send(c.any(), packet, command)
		}
		<-tick
		c.send(c.any(), packet, command)
		if rand.IntN(3) == 0 {
			return
		}
	}
}

// TestHistory: whatever happens to three stores, agents and servers, three gateways have done nothing that one gateway
// without trouble could not have done.
func TestHistory(t *testing.T) {
	s, dir, quiet := newSite(t, 3), t.TempDir(), slog.New(slog.DiscardHandler)
	c := new(clients)
	socket := func(i int) string { return filepath.Join(dir, name(i)) }
	var stop [3]func()
	for i := range c.gateways {
		c.gateways[i].Store(s.start(t, name(i), socket(i)))
		stop[i] = s.agent(t, name(i), socket(i), quiet)
	}
	all := func() { alive(t, c.gateways[0].Load(), c.gateways[1].Load(), c.gateways[2].Load()) }
	all()
	over := make(chan struct{})
	var giving sync.WaitGroup
	for range 16 {
		giving.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-over:
					return
				default:
					c.give(tick.C)
				}
			}
		})
	}
	for _, trouble := range []func(){
		func() { s.cluster.Restart(t, s.cluster.Leader(t)) },
		func() { stop[0](); stop[0] = s.agent(t, name(0), socket(0), quiet) },
		func() {
			leader := s.cluster.Leader(t)
			s.cluster.Signal(t, leader, syscall.SIGSTOP)
			defer s.cluster.Signal(t, leader, syscall.SIGCONT)
			c.goesOn(t)
		},
		func() { c.gateways[1].Load().stop(); c.gateways[1].Store(s.start(t, name(1), socket(1))) },
		func() {
			for i := range 3 {
				s.cluster.Restart(t, i)
			}
		},
	} {
		c.goesOn(t)
		trouble()
		all()
	}
	c.goesOn(t)
	close(over)
	giving.Wait()
	c.history.Check(t)
}

// goesOn waits until more commands were carried out.
func (c *clients) goesOn(t *testing.T) {
	t.Helper()
	before := c.history.Acts()
	lab.Eventually(t, "commands are carried out", func() bool { return c.history.Acts() > before+100 })
}

func name(i int) string { return string(rune('a' + i)) }
