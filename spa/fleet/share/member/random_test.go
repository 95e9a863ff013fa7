package member_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
)

// A schedule is one random run of everything.
type schedule struct {
	*site
	chance  *chance
	pace    time.Duration
	calm    atomic.Bool
	away    []int // outages of the store, for each gateway
	packets []packet
	numbers uint64
}

// worst is what goes wrong, each with its own probability in each run.
var worst = trouble{late: 0.15, lost: 0.15, twice: 0.3, failed: 0.1, lag: 0.05, broken: 0.05}

func newSchedule(seed uint64, members int, calm bool) *schedule {
	s := &schedule{site: newSite(), chance: newChance(seed), away: make([]int, members)}
	s.calm.Store(calm)
	scale := float64(s.chance.n(4)) / 3 // some runs are quieter, and some longer
	s.pace = []time.Duration{100, 300, 300, 1500}[s.chance.n(4)] * time.Millisecond
	trouble := func() trouble {
		if s.calm.Load() {
			return trouble{}
		}
		w := worst
		w.late, w.lost, w.twice, w.failed = w.late*scale, w.lost*scale, w.twice*scale, w.failed*scale
		return w
	}
	for i := range members {
		g := &gateway{site: s.site, name: fmt.Sprintf("gw%d", i), journal: s.chance.of(0.5),
			grants: make(map[[16]byte]grant), ahead: s.chance.upTo(window),
			fails: func() bool { return !s.calm.Load() && s.chance.of(0.1*scale) },
			slow: func() {
				if !s.calm.Load() && s.chance.of(0.02*scale) {
					s.outage(i)
					time.Sleep(s.chance.upTo(15 * time.Second))
				}
			}}
		g.agent = &agent{store: s.store, chance: s.chance, trouble: trouble, away: func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.away[i] > 0
		}}
		s.gates = append(s.gates, g)
		g.boot()
		g.dial()
	}
	return s
}

// number returns bytes that no other call returned.
func (s *schedule) number(b []byte) {
	s.numbers++
	binary.BigEndian.PutUint64(b, s.numbers<<40)
	b[5], b[6] = byte(s.numbers>>8), byte(s.numbers)
}

// stamped returns the time by a client's clock, which is ahead of the slowest member's, as are those of the others.
func (s *schedule) stamped(client keys.ID) time.Time {
	return time.Now().Add(time.Duration(client) * window / 4)
}

// command returns the first packet of a command.
func (s *schedule) command(close bool) packet {
	p := packet{client: keys.ID(1 + s.chance.n(3)), close: close}
	s.number(p.request[:])
	p.first = s.stamped(p.client)
	return s.retry(p)
}

// retry returns another packet of a command.
func (s *schedule) retry(p packet) packet {
	s.number(p.nonce[:])
	p.stamp = s.stamped(p.client)
	s.packets = append(s.packets, p)
	return p
}

func (s *schedule) any() *gateway { return s.gates[s.chance.n(len(s.gates))] }

// step does one thing that a client, an attacker or fate may do.
func (s *schedule) step() {
	switch n := s.chance.n(100); {
	case n < 25:
		s.any().deliver(s.command(false))
	case n < 32:
		s.any().deliver(s.command(true))
	case n < 50 && len(s.packets) > 0:
		recent := s.packets
		if s.chance.of(0.8) {
			recent = recent[max(0, len(recent)-10):]
		}
		s.any().deliver(s.retry(recent[s.chance.n(len(recent))]))
	case n < 95 && len(s.packets) > 0: // copies
		recent := s.packets[max(0, len(s.packets)-40):]
		p := recent[s.chance.n(len(recent))]
		for range 1 + s.chance.n(len(s.gates)) {
			s.any().deliver(p)
		}
	case n == 95:
		g := s.any()
		g.crash()
		time.Sleep(s.chance.upTo(2 * time.Second))
		g.boot()
		g.dial()
	case n == 96 && s.chance.of(0.3):
		g := s.any()
		g.stop()
		g.boot()
		g.dial()
	case n == 97:
		s.any().dial()
	case n == 98:
		s.outage(s.chance.n(len(s.away)))
	}
	if s.chance.of(0.7) {
		time.Sleep(s.chance.upTo(s.pace))
	}
}

// outage keeps a member's agent from the store for a while.
func (s *schedule) outage(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away[i]++
	time.AfterFunc(s.chance.upTo(20*time.Second), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.away[i]--
	})
}

// settle ends all trouble. Then everything must work: L.
func (s *schedule) settle(t *testing.T) {
	s.calm.Store(true)
	time.Sleep(2 * time.Minute) // what is late arrives, and dead members' sessions end
	for i, g := range s.gates {
		if !g.m.Alive() {
			t.Errorf("L: member %d is not alive: %+v", i, g.m.Status())
		}
	}
	s.finish(t)
}

// finish opens and closes through random members, and delivers packets to one or to all of them.
func (s *schedule) finish(t *testing.T) {
	for range 5 {
		for _, closes := range []bool{false, true} {
			p := s.command(closes)
			everyone := s.chance.of(0.5)
			if !everyone {
				s.any().deliver(p)
			} else {
				for _, g := range s.gates {
					g.deliver(p)
				}
			}
			time.Sleep(time.Second)
			s.check(t, p)
		}
		time.Sleep(2 * window)
	}
}

func (s *schedule) check(t *testing.T, p packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.close && (s.acts["S2"+string(p.request[:])] != 1 || !s.granted[p.request]) {
		t.Errorf("L: %x was granted %d times, and answered: %t", p.request[:8], s.acts["S2"+string(p.request[:])],
			s.granted[p.request])
	}
	if p.close && !s.closed[p.request] {
		t.Errorf("L: the close %x was not answered", p.request[:8])
	}
	for _, g := range s.gates {
		_, has := g.grants[p.request]
		if !p.close && !has {
			t.Errorf("L: %s has not installed %x", g.name, p.request[:8])
		}
	}
}

// end stops everything, and reports what was broken.
func (s *schedule) end(t *testing.T) {
	for _, g := range s.gates {
		g.stop()
	}
	time.Sleep(2 * time.Minute) // late requests arrive
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.Check(t)
	for _, text := range s.broken {
		t.Error(text)
	}
}

// seeds returns how many schedules to try: SALLYPORT_CASES=1000 tries so many.
func seeds() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("SALLYPORT_CASES"), 10, 64); err == nil && n > 1 {
		return n
	}
	return 30
}

// TestRandomSchedules: whatever the network, the store, members and agents do, the properties of spa/models hold; and
// once they do what they should, so does L.
func TestRandomSchedules(t *testing.T) {
	for seed := range seeds() {
		for members := 2; members <= 3; members++ {
			t.Run(fmt.Sprintf("%d members, seed %d", members, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSchedule(seed, members, false)
					for range 400 {
						s.step()
					}
					s.settle(t)
					s.end(t)
				})
			})
		}
	}
}

// TestCalm: without trouble every packet is granted and every close answered.
func TestCalm(t *testing.T) {
	for members := 2; members <= 3; members++ {
		synctest.Test(t, func(t *testing.T) {
			s := newSchedule(uint64(members), members, true)
			time.Sleep(time.Second)
			s.finish(t)
			s.end(t)
		})
	}
}

// TestStuckLine: a member whose line is stuck until the others do not wait for it any more does not act then, although
// the packet is still fresh and no floor is known here.
func TestStuckLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSchedule(1, 2, true)
		s.gates[0].ahead, s.gates[1].ahead = 0, 0
		s.gates[0].slow = func() {
			s.mu.Lock()
			s.away[0]++
			s.mu.Unlock()
			time.Sleep(share.SessionUse + time.Second)
		}
		time.Sleep(2*share.SessionEvery - 100*time.Millisecond) // shortly before the session is asked for
		open := s.command(false)
		open.stamp = time.Now().Add(window - time.Millisecond)
		open.first = open.stamp
		shut := open
		s.number(shut.request[:])
		s.number(shut.nonce[:])
		shut.close = true
		s.gates[0].deliver(open)
		time.Sleep(time.Second)
		s.gates[1].deliver(shut)
		time.Sleep(share.SessionTTL)
		s.mu.Lock()
		if !s.closed[shut.request] {
			t.Error("the close is not answered")
		}
		s.mu.Unlock()
		s.end(t)
	})
}
