package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attemptEvery is how often Attempts tries, and attemptFor how long it waits for an answer. The kernel resends a SYN
// after a second: an attempt is one SYN.
const (
	attemptEvery = time.Millisecond
	attemptFor   = 200 * time.Millisecond
)

// Attempts makes a TCP connection attempt each millisecond, each with a single SYN, without waiting for the earlier
// ones.
type Attempts struct {
	from, to netip.AddrPort
	begun    chan struct{} // closed with the first attempt
	stop     chan struct{}
	ended    sync.WaitGroup
	count    atomic.Int64 // attempts so far

	// Used by the goroutine that tries, and by others after it has ended.
	made    []attempt
	waiting []waiting
	err     error
}

type attempt struct {
	begun    time.Time
	accepted bool
}

// waiting is the socket of a pending attempt.
type waiting struct{ fd, attempt int }

// Attempt starts to try to connect from an address inside the host to an address and port. When it returns, it has made
// the first attempt. Stop ends it.
func Attempt(t testing.TB, h *Host, from, to string) *Attempts {
	t.Helper()
	source := Value(netip.ParseAddr(from))(t)
	target := Value(netip.ParseAddrPort(to))(t)
	a := &Attempts{from: netip.AddrPortFrom(source, 0), to: target, begun: make(chan struct{}), stop: make(chan struct{})}
	a.ended.Go(func() { a.err = h.Do(a.try) })
	t.Cleanup(a.end)
	<-a.begun
	return a
}

// Stop ends the attempts, waits for the pending ones, and returns the outcome of all.
func (a *Attempts) Stop() (Outcome, error) {
	a.end()
	if a.err != nil {
		return Outcome{}, fmt.Errorf("lab: attempts from %v to %v: %w", a.from, a.to, a.err)
	}
	return outcome(a.made), nil
}

func (a *Attempts) end() {
	select {
	case <-a.stop:
	default:
		close(a.stop)
	}
	a.ended.Wait()
}

// try runs inside the host until it is stopped and no attempt is pending.
func (a *Attempts) try() error {
	defer a.abandon()
	err := a.begin()
	close(a.begun)
	if err != nil {
		return err
	}
	tick := time.NewTicker(attemptEvery)
	defer tick.Stop()
	stop := a.stop
	for stop != nil || len(a.waiting) > 0 {
		select {
		case <-stop:
			stop = nil
		case <-tick.C:
		}
		if stop != nil {
			if err := a.begin(); err != nil {
				return err
			}
		}
		if err := a.look(); err != nil {
			return err
		}
	}
	return nil
}

// begin sends a SYN.
func (a *Attempts) begin() error {
	fd, err := unix.Socket(Family(a.to), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	a.waiting = append(a.waiting, waiting{fd, len(a.made)})
	a.made = append(a.made, attempt{begun: time.Now()})
	a.count.Add(1)
	// Reset instead of an orderly close: so many connections must leave nothing behind.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Bind(fd, Sockaddr(a.from)); err != nil {
		return err
	}
	err = unix.Connect(fd, Sockaddr(a.to))
	if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

// look removes attempts that have ended or have waited long enough.
func (a *Attempts) look() error {
	fds := make([]unix.PollFd, len(a.waiting))
	for i, w := range a.waiting {
		fds[i] = unix.PollFd{Fd: int32(w.fd), Events: unix.POLLOUT}
	}
	if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	still := a.waiting[:0]
	for i, w := range a.waiting {
		accepted := fds[i].Revents&unix.POLLOUT != 0 && fds[i].Revents&unix.POLLERR == 0
		a.made[w.attempt].accepted = accepted
		if fds[i].Revents != 0 || time.Since(a.made[w.attempt].begun) > attemptFor {
			unix.Close(w.fd)
			continue
		}
		still = append(still, w)
	}
	a.waiting = still
	return nil
}

// abandon closes the pending attempts.
func (a *Attempts) abandon() {
	for _, w := range a.waiting {
		unix.Close(w.fd)
	}
}

// Family returns the address family of sockets for an address.
func Family(ap netip.AddrPort) int {
	if ap.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// Sockaddr returns an address as system calls take it.
func Sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
}

// Outcome is the result of attempts.
type Outcome struct {
	Made, Through int           // attempts, and accepted ones
	Open          time.Duration // the longest time that the port can have been open in total
	Longest       time.Duration // the longest time between two attempts: the port may have been open for less unnoticed
}

// outcome sums up attempts, in the order of their start.
func outcome(made []attempt) Outcome {
	o := Outcome{Made: len(made)}
	for i, this := range made {
		if this.accepted {
			o.Through++
		}
		if i == 0 {
			continue
		}
		pause := this.begun.Sub(made[i-1].begun)
		o.Longest = max(o.Longest, pause)
		if this.accepted || made[i-1].accepted {
			o.Open += pause
		}
	}
	return o
}

// String returns a text such as "open for at most 12.3ms: 11 of 2034 attempts got through, the longest pause between
// two was 3ms".
func (o Outcome) String() string {
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	if o.Through == 0 {
		return fmt.Sprintf("never open: none of %d attempts got through, the longest pause between two was %v",
			o.Made, round(o.Longest))
	}
	return fmt.Sprintf("open for at most %v: %d of %d attempts got through, the longest pause between two was %v",
		round(o.Open), o.Through, o.Made, round(o.Longest))
}
