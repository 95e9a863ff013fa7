package main

import (
	"encoding/binary"
	"errors"
	mathrand "math/rand/v2"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blast is noise that is being sent.
type blast struct {
	stop  chan struct{}
	ended chan struct{} // closed when it has ended; then the rest is known
	sent  uint64
	took  time.Duration
	err   error
}

// blast sends a load from the client's interface, at a number of frames per second or, with 0, as fast as it can.
func (n *network) blast(l *load, rate int) *blast {
	b := &blast{stop: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(b.ended)
		b.err = n.client.Do(func() error { return b.send(n, l, rate) })
	}()
	return b
}

// end stops the noise and returns how many frames were sent per second.
func (b *blast) end() (float64, error) {
	close(b.stop)
	<-b.ended
	return float64(b.sent) / b.took.Seconds(), b.err
}

// batch is how many frames a system call sends.
const batch = 64

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	size   uint32
	_      [4]byte
}

func (b *blast) send(n *network, l *load, rate int) error {
	fd, err := n.frameSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var pins runtime.Pinner
	defer pins.Unpin()
	messages := l.messages(&pins)
	begun := time.Now()
	defer func() { b.took = time.Since(begun) }()
	for at := 0; ; at = (at + batch) % len(messages) {
		select {
		case <-b.stop:
			return nil
		default:
		}
		l.freshen(at)
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[at])), batch,
			0, 0, 0)
		if errno != 0 && !errors.Is(errno, unix.ENOBUFS) && !errors.Is(errno, unix.EINTR) {
			return errno
		}
		if errno == 0 {
			b.sent += uint64(sent)
		}
		if rate > 0 {
			time.Sleep(time.Until(begun.Add(time.Duration(float64(b.sent) / float64(rate) * float64(time.Second)))))
		}
	}
}

// frameSocket opens a socket that sends frames, past the queue of the client's interface.
func (n *network) frameSocket() (int, error) {
	index, _, err := n.client.Interface(clientDev)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
	)
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// messages points the kernel to the frames. Their number is a multiple of batch.
func (l *load) messages(pins *runtime.Pinner) []message {
	messages := make([]message, len(l.frames))
	for i, frame := range l.frames {
		iov := &unix.Iovec{Base: unsafe.SliceData(frame)}
		iov.SetLen(len(frame))
		pins.Pin(iov)
		pins.Pin(iov.Base)
		messages[i].header.Iov = iov
		messages[i].header.SetIovlen(1)
	}
	return messages
}

// freshen changes the frames of the batch that begins at at.
func (l *load) freshen(at int) {
	if l.fresh == 0 {
		return
	}
	for _, frame := range l.frames[at : at+batch] {
		binary.NativeEndian.PutUint64(frame[l.fresh:], mathrand.Uint64())
	}
}
