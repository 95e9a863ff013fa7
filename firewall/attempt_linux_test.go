package firewall

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// A test may be stopped for seconds, or run at a fraction of its speed. So when a time limit has passed, a test
// checks once more whether something came in time, and repeats with a longer limit whatever must be done in time.

// errSilence is the error of an attempt without an answer.
var errSilence = errors.New("silence")

// attempt tries to connect from the client.
func (s *site) attempt(from, to, port string, within time.Duration) (net.Conn, error) {
	remote, err := netip.ParseAddrPort(net.JoinHostPort(to, port))
	if err != nil {
		return nil, err
	}
	local, err := netip.ParseAddrPort(from)
	if err != nil {
		addr, err := netip.ParseAddr(from)
		if err != nil {
			return nil, err
		}
		local = netip.AddrPortFrom(addr, 0)
	}
	f, err := tcpSocket(s.client, local)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := answered(f, remote, within); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// tcpSocket returns a socket of a host, bound and not connected.
func tcpSocket(h *lab.Host, local netip.AddrPort) (*os.File, error) {
	var f *os.File
	err := h.Do(func() error {
		fd, err := unix.Socket(lab.Family(local), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "attempt")
		return unix.Bind(fd, lab.Sockaddr(local))
	})
	if err != nil && f != nil {
		f.Close()
	}
	return f, err
}

// answered connects a socket.
func answered(f *os.File, to netip.AddrPort, within time.Duration) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Control(func(fd uintptr) {
		outcome = unix.Connect(int(fd), lab.Sockaddr(to))
		if outcome == unix.EINPROGRESS {
			outcome = await(int(fd), within)
		}
	})
	return errors.Join(err, outcome)
}

// await waits until the outcome of a connection is decided. The kernel decides, whether or not this process runs.
func await(fd int, within time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for end := time.Now().Add(within); ; {
		left := max(0, time.Until(end))
		remaining := unix.NsecToTimespec(left.Nanoseconds())
		n, err := unix.Ppoll(fds, &remaining, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0:
			errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && errno != 0 {
				err = unix.Errno(errno)
			}
			return err
		case left == 0:
			return errSilence
		}
	}
}

// reads reads at least so many bytes into b, if they arrive in time, and returns how many it read.
func reads(c net.Conn, b []byte, least int, within time.Duration) int {
	c.SetReadDeadline(time.Now().Add(within))
	n, err := io.ReadAtLeast(c, b, least)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		n += readArrived(c, b[n:])
	}
	return n
}

// readArrived reads what has arrived.
func readArrived(c net.Conn, b []byte) (n int) {
	c.SetReadDeadline(time.Time{})
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0
	}
	raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		return true
	})
	return max(0, n)
}

// shorten makes grants end soon, without further help. Tests use their grants before they call it:
// that may take longer than short grants last.
func (s *site) shorten(m Match, last time.Duration) {
	s.Helper()
	gs := s.revoke(m)
	now := time.Now()
	for i := range gs {
		gs[i].Until = now.Add(last)
	}
	s.must(s.Grant(s.Context(), gs, now))
}
