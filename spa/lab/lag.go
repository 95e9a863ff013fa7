package lab

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Relay returns a loopback address whose connections lead to another one. Each byte arrives that much later, however
// many are on their way.
func Relay(t testing.TB, to string, later time.Duration) string {
	t.Helper()
	l := Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	Serve(t, l, func(near net.Conn) {
		defer near.Close()
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer far.Close()
		var copying sync.WaitGroup
		copying.Go(func() { Lag(far, near, later) })
		copying.Go(func() { Lag(near, far, later) })
		copying.Wait()
	})
	return l.Addr().String()
}

// Lag copies what it reads, each part that much later, until one of the connections ends. Then it closes to.
func Lag(to, from net.Conn, later time.Duration) {
	type part struct {
		due  time.Time
		data []byte
	}
	parts := make(chan part, 10000)
	var writing sync.WaitGroup
	writing.Go(func() {
		defer to.Close()
		for p := range parts {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				break
			}
		}
		for range parts {
		}
	})
	for {
		data := make([]byte, 64<<10)
		n, err := from.Read(data)
		if n > 0 {
			parts <- part{time.Now().Add(later), data[:n]}
		}
		if err != nil {
			break
		}
	}
	close(parts)
	writing.Wait()
}
