package member_test

import (
	"bytes"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A brief is an agent's connection that ends with a message: left counts those that may still pass, either way.
type brief struct {
	net.Conn
	left *atomic.Int64
}

// until returns the part of b that still passes, and whether the connection ends then.
func (c brief) until(b []byte) ([]byte, bool) {
	for n := 0; ; n++ {
		i := bytes.IndexByte(b[n:], '\n')
		if i < 0 {
			return b, c.left.Load() <= 0
		}
		n += i
		if c.left.Add(-1) <= 0 {
			return b[:n+1], true
		}
	}
}

func (c brief) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	passed, ends := c.until(b[:n])
	if ends {
		c.Close()
	}
	return len(passed), err
}

func (c brief) Write(b []byte) (int, error) {
	passed, ends := c.until(b)
	n, err := c.Conn.Write(passed)
	if ends {
		c.Close()
	}
	return n, err
}

// TestAgentKilledAtEachMessage: wherever a member's agent is killed while packets and closes go to all members, the
// properties of spa/models hold, and the next agent goes on.
func TestAgentKilledAtEachMessage(t *testing.T) {
	for n, more := 1, true; more; n++ {
		t.Run(fmt.Sprintf("message %d", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSchedule(uint64(n), 2, true)
				var left atomic.Int64
				left.Store(int64(n))
				used := false
				s.gates[0].through = func(c net.Conn) net.Conn {
					if used {
						return c
					}
					used = true
					return brief{c, &left}
				}
				s.gates[0].dial()
				time.Sleep(500 * time.Millisecond)
				for _, closes := range []bool{false, false, true, false} {
					p := s.command(closes)
					s.gates[1].deliver(p)
					s.gates[0].deliver(p)
					time.Sleep(700 * time.Millisecond)
					s.gates[0].deliver(s.retry(p))
					time.Sleep(700 * time.Millisecond)
				}
				more = left.Load() <= 0
				s.settle(t)
				for _, g := range s.gates {
					if is := g.m.Status(); is.Counts.Unannounced+is.Counts.Unended != 0 || is.Waiting+is.Unsettled+is.Ending != 0 {
						t.Errorf("%s has not told the others what it did: %+v", g.name, is)
					}
				}
				s.end(t)
			})
		})
	}
}
