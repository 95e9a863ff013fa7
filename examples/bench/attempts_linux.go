package main

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// An attempt is a single SYN: it ends before the kernel would send another. Attempts begin each millisecond, and after
// the first 100 ms each tenth, so that many waiting clients are not a flood of their own.
const (
	attemptEvery = ms
	attemptLater = 10 * ms
	attemptOften = 100 * ms
	attemptFor   = 200 * ms
)

// accepts tries to connect to the guarded port from an address of the client until that works or the time is over.
func (n *network) accepts(from netip.Addr, within time.Duration) (bool, error) {
	a := &attempts{from: netip.AddrPortFrom(from, 0)}
	defer a.close()
	err := n.client.Do(func() error { return a.try(within) })
	return a.accepted, err
}

// attempts are connections that are being made.
type attempts struct {
	from     netip.AddrPort
	fds      []unix.PollFd
	begun    []time.Time // of each
	accepted bool
}

func (a *attempts) try(within time.Duration) error {
	begun := time.Now()
	next := begun
	for !a.accepted && time.Since(begun) < within {
		if !time.Now().Before(next) {
			if err := a.begin(); err != nil {
				return err
			}
			next = next.Add(attemptEvery)
			if time.Since(begun) > attemptOften {
				next = time.Now().Add(attemptLater)
			}
		}
		if err := a.look(time.Until(next)); err != nil {
			return err
		}
	}
	return nil
}

// begin sends a SYN.
func (a *attempts) begin() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	a.fds = append(a.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
	a.begun = append(a.begun, time.Now())
	// Reset instead of an orderly close: so many connections must leave nothing behind.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.Bind(fd, lab.Sockaddr(a.from)); err != nil {
		return err
	}
	err = unix.Connect(fd, lab.Sockaddr(guarded))
	if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

// look waits for an answer and removes the attempts that have ended.
func (a *attempts) look(wait time.Duration) error {
	timeout := unix.NsecToTimespec(max(0, wait.Nanoseconds()))
	if _, err := unix.Ppoll(a.fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	fds, begun := a.fds[:0], a.begun[:0]
	for i, fd := range a.fds {
		a.accepted = a.accepted || fd.Revents&unix.POLLOUT != 0 && fd.Revents&unix.POLLERR == 0
		if fd.Revents != 0 || time.Since(a.begun[i]) > attemptFor {
			unix.Close(int(fd.Fd))
			continue
		}
		fds, begun = append(fds, fd), append(begun, a.begun[i])
	}
	a.fds, a.begun = fds, begun
	return nil
}

func (a *attempts) close() {
	for _, fd := range a.fds {
		unix.Close(int(fd.Fd))
	}
}
