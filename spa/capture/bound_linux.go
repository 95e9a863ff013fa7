package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"sallyport/spa/capture/gate"
)

// boundQueue is how many bytes of packets a bound socket holds until they are read.
const boundQueue = 4 << 20

// Bound reads knocks from UDP sockets that it binds to the ports, and answers from them, for a server that may not open
// packet sockets (CAP_NET_RAW). Compared with a [Sniffer]:
//
//   - The host's firewall must let the packets through, on every interface.
//   - A port that is bound never answers "port unreachable": on a host whose closed ports do, a scan sees it.
//   - No other program can use the port.
//   - The kernel has put fragments together and removed IP options and extension headers: nothing is refused for them.
//
// One goroutine reads; Send, Stats and Close may be called from any.
type Bound struct {
	interfaces []string
	conns      []*boundConn
	packets    chan Packet
	errs       chan error
	done       chan struct{}
	closing    sync.Once
	start      sync.Once
	counts     [verdicts]atomic.Uint64
	gate       gating

	mu    sync.RWMutex // guards the fields below, and sockets of Send against Close
	host  *host
	names *rtnetlink
	ways  *ways
	mark  uint32
	plain int // bytes of the longest candidate without a frame
}

// boundConn is the socket of one port and address family.
type boundConn struct {
	*net.UDPConn
	raw   syscall.RawConn
	six   bool
	port  uint16
	drops atomic.Uint32 // by the kernel, as its packets report it
}

// Bind binds the ports. Answers carry the packet mark, as those of a [Responder].
func Bind(c Config, mark uint32) (*Bound, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	b := &Bound{interfaces: slices.Clone(c.Interfaces), packets: make(chan Packet), errs: make(chan error),
		done: make(chan struct{}), mark: mark, plain: c.MaxLen}
	if err := b.open(c); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Bound) open(c Config) error {
	var err error
	if b.host, err = openHost(); err != nil {
		return err
	}
	if b.names, err = openNetlink(0); err != nil {
		return err
	}
	if b.ways, err = openWays(); err != nil {
		return err
	}
	return b.gate.open(c, b.bindAll)
}

// bindAll binds the ports with the gate or, if there is none, with classic filters.
func (b *Bound) bindAll(c Config, g *gate.Gate) error {
	for _, port := range c.Ports {
		for _, six := range []bool{false, true} {
			conn, err := bind(c, port, six, b.mark, g)
			if six && errors.Is(err, unix.EAFNOSUPPORT) {
				continue // a host without IPv6
			}
			if err != nil {
				for _, conn := range b.conns {
					err = errors.Join(err, conn.Close())
				}
				b.conns = nil
				return fmt.Errorf("binding udp/%d: %w", port, err)
			}
			b.conns = append(b.conns, conn)
		}
	}
	return nil
}

// bind opens the socket of a port in one address family. Its filter lets only possible lengths into the queue.
func bind(c Config, port uint16, six bool, mark uint32, g *gate.Gate) (*boundConn, error) {
	filter := func(fd int) error {
		if g != nil {
			return g.AttachBound(fd, six, udpHeader+c.longest())
		}
		return attach(fd, slices.Concat(
			lengthBetween(bpf.LoadExtension{Num: bpf.ExtLen}, c),
			[]bpf.Instruction{bpf.RetConstant{Val: uint32(udpHeader + c.longest())}}))
	}
	network, level, info := "udp4", unix.IPPROTO_IP, unix.IP_PKTINFO
	if six {
		network, level, info = "udp6", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	prepare := func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), level, info, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, boundQueue),
				filter(int(fd)),
			)
			if six { // an address may be this host's own only by a local route
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1))
			}
		}), err)
	}
	listen := net.ListenConfig{Control: prepare}
	conn, err := listen.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, withoutAddress(err)
	}
	udp := conn.(*net.UDPConn)
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, udp.Close())
	}
	return &boundConn{UDPConn: udp, raw: raw, six: six, port: port}, nil
}

// withoutAddress returns an error of package net without the call and address around it.
func withoutAddress(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// Read waits for the next candidate and returns it. Its Data is valid until the next Read. After Close the error is
// net.ErrClosed.
func (b *Bound) Read() (Packet, error) {
	b.start.Do(func() {
		for _, c := range b.conns {
			go b.receive(c)
		}
	})
	select {
	case p := <-b.packets:
		return p, nil
	case err := <-b.errs:
		return Packet{}, fmt.Errorf("waiting for a packet: %w", err)
	case <-b.done:
		return Packet{}, net.ErrClosed
	}
}

// receive passes the packets of one socket on. It fills one buffer while the reader of the other's packet works: a
// packet that is taken from the channel is the reader's until it comes for the next one.
func (b *Bound) receive(c *boundConn) {
	var bufs [2][maxPayload + 1]byte
	frames := [2]unframer{{longest: b.plain}, {longest: b.plain}}
	var oob [256]byte
	for turn := 0; ; {
		n, control, flags, from, err := c.ReadMsgUDPAddrPort(bufs[turn][:], oob[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case b.errs <- err:
			case <-b.done:
			}
			return
		}
		p, v := b.judge(c, from, oob[:control])
		if v == passed && flags&unix.MSG_TRUNC != 0 {
			v = malformed
		}
		if v == passed {
			p.Data = bufs[turn][:n]
			p, v = frames[turn].open(p)
		}
		b.counts[v].Add(1)
		if !v.isCandidate() {
			continue
		}
		select {
		case b.packets <- p:
			turn = 1 - turn
		case <-b.done:
			return
		}
	}
}

// judge returns the verdict on a packet, and the Packet without its Data.
func (b *Bound) judge(c *boundConn, from netip.AddrPort, control []byte) (Packet, verdict) {
	to, index := c.arrival(control)
	// Not unmapped: an IPv6 packet can come from an IPv4-mapped address, which is no sender's (see impossible).
	p := Packet{From: netip.AddrPortFrom(from.Addr().WithZone(""), from.Port()),
		To: netip.AddrPortFrom(to, c.port), Interface: int(index)}
	if !to.IsValid() {
		return p, malformed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.host == nil {
		return p, notForUs // closed
	}
	b.host.refresh()
	l := b.host.links[index]
	if len(b.interfaces) == 0 && l.loopback || len(b.interfaces) > 0 && !l.isNamed(b.interfaces) {
		return p, wrongInterface
	}
	switch source := p.From.Addr(); {
	case !(l.loopback && to.IsLoopback()) && !b.host.isOwn(to):
		return p, notForUs
	case l.loopback && source.IsLoopback():
		return p, passed
	case impossible(source) || b.host.isBroadcast(source):
		return p, badSource
	case !l.loopback && b.host.isOwn(source):
		return p, ownSource
	}
	return p, passed
}

// arrival returns the address that a packet was sent to and the interface that it came in by, and notes the kernel's
// count of drops (ip(7), ipv6(7), socket(7)).
func (c *boundConn) arrival(control []byte) (to netip.Addr, index int32) {
	for len(control) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		control = rest
		switch kind := [2]int32{header.Level, header.Type}; {
		case kind == [2]int32{unix.IPPROTO_IP, unix.IP_PKTINFO} && len(data) >= unix.SizeofInet4Pktinfo:
			index, to = int32(binary.NativeEndian.Uint32(data)), netip.AddrFrom4([4]byte(data[8:12]))
		case kind == [2]int32{unix.IPPROTO_IPV6, unix.IPV6_PKTINFO} && len(data) >= unix.SizeofInet6Pktinfo:
			index, to = int32(binary.NativeEndian.Uint32(data[16:])), netip.AddrFrom16([16]byte(data[:16]))
		case kind == [2]int32{unix.SOL_SOCKET, unix.SO_RXQ_OVFL} && len(data) >= 4:
			c.drops.Store(binary.NativeEndian.Uint32(data))
		}
	}
	return to, index
}

// Send sends payload from p's destination to p's source, as [Responder.Send] does.
func (b *Bound) Send(p Packet, payload []byte, keep bool) error {
	from, to := p.To, p.From
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.ways == nil {
		return fmt.Errorf("answering %v from %v: %w", to, from, net.ErrClosed)
	}
	i := slices.IndexFunc(b.conns, func(c *boundConn) bool {
		return c.port == from.Port() && c.six == from.Addr().Is6()
	})
	if i < 0 || from.Addr().Is4() != to.Addr().Is4() || to.Port() == 0 {
		return fmt.Errorf("cannot send from %v to %v", from, to)
	}
	var control []byte
	var dst unix.Sockaddr
	if from.Addr().Is4() {
		info := unix.Inet4Pktinfo{Spec_dst: from.Addr().As4()}
		if to.Addr().IsLinkLocalUnicast() {
			info.Ifindex = int32(p.Interface)
		}
		control, dst = unix.PktInfo4(&info), &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	} else {
		info, six := unix.Inet6Pktinfo{Addr: from.Addr().As16()}, unix.SockaddrInet6{Addr: to.Addr().As16(),
			Port: int(to.Port())}
		if to.Addr().IsLinkLocalUnicast() {
			info.Ifindex, six.ZoneId = uint32(p.Interface), uint32(p.Interface)
		}
		control, dst = unix.PktInfo6(&info), &six
	}
	control = append(control, markOf(b.ways.back(p, b.mark, keep))...)
	var err error
	if e := b.conns[i].raw.Control(func(fd uintptr) {
		_, err = unix.SendmsgN(int(fd), payload, control, dst, unix.MSG_DONTWAIT)
	}); e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("answering %v from %v: %w", to, from, err)
	}
	return nil
}

// Stats returns the counts so far.
func (b *Bound) Stats() Stats {
	s := Stats{
		Passed:         b.counts[passed].Load() + b.counts[framed].Load(),
		Framed:         b.counts[framed].Load(),
		WrongInterface: b.counts[wrongInterface].Load(),
		NotForUs:       b.counts[notForUs].Load(),
		OwnSource:      b.counts[ownSource].Load(),
		BadSource:      b.counts[badSource].Load(),
		Malformed:      b.counts[malformed].Load(),
		Unframed:       b.counts[unframed].Load(),
	}
	s.Received = s.Passed + s.WrongInterface + s.NotForUs + s.OwnSource + s.BadSource + s.Malformed + s.Unframed
	for _, c := range b.conns {
		s.KernelDrops += uint64(c.drops.Load())
	}
	s.Gate = b.gate.Counts()
	return s
}

// Gate returns how the gate tag is checked in the kernel.
func (b *Bound) Gate() Gating { return b.gate.status() }

// SetGateKeys replaces the keys of the gate tag.
func (b *Bound) SetGateKeys(keys []gate.Key) { b.gate.SetKeys(keys) }

// Copied is [Sniffer.Copied].
func (b *Bound) Copied(p Packet, elsewhere bool) { b.gate.Copied(p.Data, p.From.Addr(), elsewhere) }

// Interfaces returns the names of the current network interfaces, except the loopback; none after Close.
func (b *Bound) Interfaces() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names == nil {
		return []string{}
	}
	return namesOf(b.names)
}

// Close wakes the reader and closes the sockets. Stats stay readable. Closing again does nothing.
func (b *Bound) Close() error {
	var errs []error
	b.closing.Do(func() {
		close(b.done)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.conns {
			errs = append(errs, c.Close())
		}
		errs = append(errs, b.gate.close())
		if b.host != nil {
			b.host.close()
		}
		if b.names != nil {
			b.names.close()
		}
		if b.ways != nil {
			b.ways.close()
		}
		b.host, b.names, b.ways = nil, nil, nil
	})
	return errors.Join(errs...)
}
