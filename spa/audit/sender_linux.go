package audit

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// unixSender sends to a socket by its name. It is opened before privileges are dropped: later no socket can be made.
type unixSender struct {
	fd int
	to *unix.SockaddrUnix
}

// sendBuffer is how much may be on its way to the journal: what systemd's own programs ask for.
const sendBuffer = 8 << 20

func openSender(path string) (sender, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer) // as much as is allowed
	}
	wait := unix.NsecToTimeval(int64(100 * time.Millisecond)) // for a journal that is behind
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &unixSender{fd, &unix.SockaddrUnix{Name: path}}, nil
}

func (s *unixSender) send(message []byte) error {
	for {
		err := unix.Sendto(s.fd, message, unix.MSG_NOSIGNAL, s.to)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOENT),
			errors.Is(err, unix.ECONNREFUSED):
			return errors.Join(errTryAgain, err)
		}
		return err
	}
}

func (s *unixSender) close() error { return unix.Close(s.fd) }
