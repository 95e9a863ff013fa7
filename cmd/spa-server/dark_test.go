package main

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// silence is how long to wait for an answer that must not come; an answer that must come has lab.Patience.
const silence = 400 * time.Millisecond

// wait returns how long to wait for an answer, which must come or must not.
func wait(must bool) time.Duration {
	if must {
		return lab.Patience
	}
	return silence
}

// reaches reports whether a connection from an address of the client host is accepted at once: for one that must not
// be, and for one that is retried until it is.
func (g *gateway) reaches(from, to string) bool {
	g.t.Helper()
	return g.reachesWithin(from, to, silence)
}

func (g *gateway) reachesWithin(from, to string, within time.Duration) bool {
	g.t.Helper()
	accepted, err := accepts(g.client, netip.MustParseAddr(from), netip.MustParseAddrPort(to), within)
	if err != nil {
		g.t.Errorf("connecting from %s to %s: %v", from, to, err)
	}
	return accepted
}

// accepts reports whether a connection is accepted within the time. It does not use net.Dialer, which misses an answer
// that came while this process was stopped: here the time starts when the SYN is sent, and there is a last check at its
// end.
func accepts(from *lab.Host, local netip.Addr, to netip.AddrPort, within time.Duration) (accepted bool, err error) {
	err = from.Do(func() error {
		fd, err := unix.Socket(lab.Family(to), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, lab.Sockaddr(netip.AddrPortFrom(local, 0))); err != nil {
			return err
		}
		err = unix.Connect(fd, lab.Sockaddr(to))
		if errors.Is(err, unix.EINPROGRESS) {
			accepted, err = decided(fd, within)
			return err
		}
		accepted = err == nil
		return nil // refused, or no route
	})
	return accepted, err
}

// decided waits until the kernel has finished a connection attempt, and reports whether it succeeded.
func decided(fd int, within time.Duration) (bool, error) {
	deadline := time.Now().Add(within)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return fds[0].Revents&unix.POLLOUT != 0 && fds[0].Revents&unix.POLLERR == 0, err
	}
}

func (g *gateway) wantDark(from, to, when string) {
	g.t.Helper()
	if g.reaches(from, to) {
		g.t.Errorf("%s: %s reaches %s, want dark\nserver:\n%s", when, from, to, g.server.log())
	}
}

func (g *gateway) wantOpen(from, to, when string) {
	g.t.Helper()
	if !g.reachesWithin(from, to, lab.Patience) {
		g.t.Errorf("%s: %s does not reach %s\nserver:\n%s", when, from, to, g.server.log())
	}
}
