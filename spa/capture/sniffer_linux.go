package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"sallyport/spa/capture/gate"
)

const (
	// refreshEvery is the number of packets without a pause after which the host's changes are read.
	refreshEvery = 1024
	// looks is how often, before that, a packet that would be noise may cause it: it costs a system call, and there may be
	// many routed packets.
	looks = 16
)

// Sniffer reads the packets that may be knocks. Opening it needs CAP_NET_RAW, reading nothing. One goroutine reads;
// Stats and Close may be called from any.
type Sniffer struct {
	interfaces []string
	rings      [2]*ring // IPv4, IPv6
	wake       int      // an eventfd, readable after Close
	gate       gating
	closed     atomic.Bool
	counts     [verdicts]atomic.Uint64

	reading sync.Mutex // held by Read, guards the fields below
	decoder *decoder
	host    *host
	turn    int    // the ring that is read first, so that a flood in one does not starve the other
	busy    int    // packets without a pause since the host's changes were read
	looks   int    // how often noise may still cause that before it is due
	data    []byte // the last Packet's
	frames  unframer

	counting sync.Mutex // guards the fields below, and the rings' sockets against Close
	names    *rtnetlink // for Interfaces
	drops    uint64
	done     bool
}

// Listen starts to queue packets. The queue holds some megabytes until Read is called; further packets are dropped and
// counted.
func Listen(c Config) (*Sniffer, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Sniffer{
		interfaces: slices.Clone(c.Interfaces),
		wake:       -1,
		decoder:    newDecoder(),
		data:       make([]byte, 0, c.longest()),
		frames:     unframer{longest: c.MaxLen},
		looks:      looks,
	}
	if err := s.open(c); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *Sniffer) open(c Config) error {
	var err error
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("opening an eventfd: %w", err)
	}
	if s.host, err = openHost(); err != nil {
		return err
	}
	if s.names, err = openNetlink(0); err != nil {
		return err
	}
	return s.gate.open(c, s.openRings)
}

// openRings opens the sockets with the gate or, if there is none, with classic filters.
func (s *Sniffer) openRings(c Config, g *gate.Gate) error {
	for i, protocol := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		filter := func(fd int) error { return attach(fd, [...][]bpf.Instruction{filter4(c), filter6(c)}[i]) }
		if g != nil {
			filter = func(fd int) error { return g.AttachPacket(fd, i == 1, snapLen(c)) }
		}
		r, err := openRing(protocol, filter, snapLen(c))
		if err != nil {
			s.closeRings()
			return err
		}
		s.rings[i] = r
	}
	return nil
}

func (s *Sniffer) closeRings() {
	for i, r := range s.rings {
		if r != nil {
			r.close()
		}
		s.rings[i] = nil
	}
}

// release closes everything that is open.
func (s *Sniffer) release() {
	s.closeRings()
	s.gate.close()
	if s.host != nil {
		s.host.close()
	}
	if s.names != nil {
		s.names.close()
	}
	if s.wake >= 0 {
		unix.Close(s.wake)
	}
}

// Read waits for the next candidate and returns it. Its Data is valid until the next Read.
// After Close the error is net.ErrClosed. An interface that goes down is no error.
func (s *Sniffer) Read() (Packet, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for {
		if s.closed.Load() {
			return Packet{}, net.ErrClosed
		}
		p, v, ok := s.next()
		if !ok {
			if err := s.wait(); err != nil {
				return Packet{}, fmt.Errorf("waiting for a packet: %w", err)
			}
			continue
		}
		s.counts[v].Add(1)
		if v.isCandidate() {
			return p, nil
		}
	}
}

// next takes a packet out of a ring, if there is one.
func (s *Sniffer) next() (Packet, verdict, bool) {
	for range s.rings {
		r := s.rings[s.turn]
		s.turn = 1 - s.turn
		f, ok := r.peek()
		if !ok {
			continue
		}
		p, v := s.judge(f, r == s.rings[1])
		// Copied: the ring may be unmapped while the caller still reads it.
		s.data = append(s.data[:0], p.Data...)
		p.Data = s.data
		r.release(f)
		s.refreshWhenBusy()
		if v == passed {
			p, v = s.frames.open(p)
		}
		return p, v, true
	}
	return Packet{}, 0, false
}

// refreshWhenBusy reads the host's changes every refreshEvery packets, because under load the sniffer never waits.
func (s *Sniffer) refreshWhenBusy() {
	if s.busy++; s.busy >= refreshEvery {
		s.busy, s.looks = 0, looks
		s.host.refresh()
	}
}

// wait returns when there may be a packet, the host has changed or Close was called.
func (s *Sniffer) wait() error {
	fds := [...]unix.PollFd{
		{Fd: int32(s.rings[0].fd), Events: unix.POLLIN},
		{Fd: int32(s.rings[1].fd), Events: unix.POLLIN},
		{Fd: int32(s.host.events.fd), Events: unix.POLLIN},
		{Fd: int32(s.wake), Events: unix.POLLIN},
	}
	if _, err := unix.Poll(fds[:], -1); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	for _, fd := range fds[:2] {
		if fd.Revents&unix.POLLERR != 0 {
			// Read from the socket, or poll would return at once for ever.
			unix.GetsockoptInt(int(fd.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
		}
	}
	s.busy, s.looks = 0, looks
	if fds[2].Revents != 0 {
		s.host.refresh()
	}
	return nil
}

// judge returns the verdict on a frame. It sets the Packet only if that passed; its Data lies in the frame.
func (s *Sniffer) judge(f frame, six bool) (Packet, verdict) {
	if !s.wanted(f) {
		return Packet{}, wrongInterface
	}
	if f.from.Pkttype != unix.PACKET_HOST && !s.tagged(f) {
		return Packet{}, notForUs
	}
	decode := s.decoder.decode4
	if six {
		decode = s.decoder.decode6
	}
	p, v := decode(f.packet)
	if v != passed {
		return Packet{}, v
	}
	if v := s.addressed(f, p.From.Addr(), p.To.Addr()); v != passed {
		return Packet{}, v
	}
	p.Interface = int(f.from.Ifindex)
	return p, passed
}

// isLoopback reports whether the frame came from the host itself.
func (f frame) isLoopback() bool { return f.from.Hatype == unix.ARPHRD_LOOPBACK }

// wanted reports whether packets may come in by the frame's interface.
func (s *Sniffer) wanted(f frame) bool {
	if len(s.interfaces) == 0 {
		return !f.isLoopback()
	}
	return s.known(func() bool {
		l, ok := s.host.links[f.from.Ifindex]
		return ok && l.isNamed(s.interfaces)
	})
}

// tagged reports whether the frame has the interface's own link address although the kernel considers it another
// host's, as it does with a VLAN tag that no interface is configured for.
func (s *Sniffer) tagged(f frame) bool {
	if f.from.Hatype != unix.ARPHRD_ETHER || len(f.link) < 6 {
		return false
	}
	return s.known(func() bool { return s.host.links[f.from.Ifindex].mac == string(f.link[:6]) })
}

// addressed judges by the addresses. At this point the kernel also delivers packets that it will only route.
func (s *Sniffer) addressed(f frame, from, to netip.Addr) verdict {
	loop := f.isLoopback() // the interface was configured, so the host may knock on itself
	switch {
	case !(loop && to.IsLoopback()) && !s.known(func() bool { return s.host.isOwn(to) }):
		return notForUs
	case loop && from.IsLoopback():
		return passed
	case impossible(from) || s.host.isBroadcast(from):
		return badSource
	case !loop && s.host.isOwn(from):
		return ownSource
	}
	return passed
}

// known evaluates ask and, if it fails, reads the host's changes and tries again: the packet may have arrived before
// the netlink event.
func (s *Sniffer) known(ask func() bool) bool {
	if ask() {
		return true
	}
	if s.looks == 0 {
		return false
	}
	s.looks--
	s.host.refresh()
	return ask()
}

// Stats returns the counts so far.
func (s *Sniffer) Stats() Stats {
	var all uint64
	for i := range s.counts {
		all += s.counts[i].Load()
	}
	return Stats{
		Received:       all,
		Passed:         s.counts[passed].Load() + s.counts[framed].Load(),
		Framed:         s.counts[framed].Load(),
		WrongInterface: s.counts[wrongInterface].Load(),
		NotForUs:       s.counts[notForUs].Load(),
		OwnSource:      s.counts[ownSource].Load(),
		BadSource:      s.counts[badSource].Load(),
		Fragment:       s.counts[fragment].Load(),
		Options:        s.counts[options].Load(),
		Extension:      s.counts[extension].Load(),
		Malformed:      s.counts[malformed].Load(),
		Unframed:       s.counts[unframed].Load(),
		KernelDrops:    s.kernelDrops(),
		Gate:           s.gate.Counts(),
	}
}

// Gate returns how the gate tag is checked in the kernel.
func (s *Sniffer) Gate() Gating { return s.gate.status() }

// SetGateKeys replaces the keys of the gate tag.
func (s *Sniffer) SetGateKeys(keys []gate.Key) { s.gate.SetKeys(keys) }

// Copied notes that p, which the server has authenticated, is a copy of a packet that was used before, and whether it
// came from another address than that. The kernel drops further copies.
func (s *Sniffer) Copied(p Packet, elsewhere bool) { s.gate.Copied(p.Data, p.From.Addr(), elsewhere) }

// Interfaces returns the names of the current network interfaces, except the loopback; none after Close.
func (s *Sniffer) Interfaces() []string {
	s.counting.Lock()
	defer s.counting.Unlock()
	if s.done {
		return []string{}
	}
	return namesOf(s.names)
}

// namesOf lists the names of the network interfaces, except the loopback.
func namesOf(n *rtnetlink) []string {
	names := []string{}
	links, err := n.dump(unix.RTM_GETLINK)
	if err != nil {
		return names
	}
	for _, u := range links {
		if !u.link.loopback {
			names = append(names, u.link.name)
		}
	}
	return names
}

// kernelDrops sums the drops of both sockets. The kernel resets them on reading.
func (s *Sniffer) kernelDrops() uint64 {
	s.counting.Lock()
	defer s.counting.Unlock()
	if s.done {
		return s.drops
	}
	for _, r := range s.rings {
		n, err := r.drops()
		if err != nil {
			continue // retried next time; the count is not lost
		}
		s.drops += n
	}
	return s.drops
}

// Close wakes the reader and frees everything. Stats stay readable. Closing again does nothing.
func (s *Sniffer) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if _, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("waking the reader: %w", err)
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	s.kernelDrops()
	s.counting.Lock()
	defer s.counting.Unlock()
	s.done = true
	s.release()
	return nil
}
