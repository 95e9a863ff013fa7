package main

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// relay carries packets between two hosts and delays each, so that a round trip takes time. It needs no queueing
// discipline of the kernel: each host has a TUN device, whose other end is this process.
type relay struct {
	ends [2]*os.File
	wg   sync.WaitGroup
}

// held is a packet on its way.
type held struct {
	data []byte
	due  time.Time
}

// inFlight is how many packets can be on their way in one direction. Further ones are lost.
const inFlight = 4096

func newRelay(a *lab.Host, devA string, b *lab.Host, devB string, delay time.Duration) (*relay, error) {
	one, err := tun(a, devA)
	if err != nil {
		return nil, err
	}
	two, err := tun(b, devB)
	if err != nil {
		return nil, errors.Join(err, one.Close())
	}
	r := &relay{ends: [2]*os.File{one, two}}
	r.carry(one, two, delay)
	r.carry(two, one, delay)
	return r, nil
}

// tun makes a TUN device inside the host and brings it up.
func tun(h *lab.Host, dev string) (*os.File, error) {
	var fd int
	err := h.Do(func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("opening /dev/net/tun", err)
		}
		req, err := unix.NewIfreq(dev)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dev), h.SetUp(dev)
}

// carry reads packets from one end and writes each to the other when it is due.
func (r *relay) carry(from, to *os.File, delay time.Duration) {
	queue := make(chan held, inFlight)
	r.wg.Go(func() {
		defer close(queue)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			select {
			case queue <- held{append([]byte(nil), buf[:n]...), time.Now().Add(delay)}:
			default:
			}
		}
	})
	r.wg.Go(func() {
		for p := range queue {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.data) // lost if the host has closed its device
		}
	})
}

func (r *relay) close() error {
	err := errors.Join(r.ends[0].Close(), r.ends[1].Close())
	r.wg.Wait()
	return err
}
