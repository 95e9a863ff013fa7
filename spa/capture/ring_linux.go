package capture

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// ringSize is the memory in which the kernel queues packets of one family: with frames of 512 bytes it holds 8,192
	// packets, or 27 ms of noise at 300,000 packets per second.
	ringSize  = 4 << 20
	ringBlock = 64 << 10
	// frameHead is the most that the kernel writes before a packet: TPACKET2_HDRLEN, and alignment.
	frameHead = unix.TPACKET_HDRLEN + 2*unix.TPACKET_ALIGNMENT
)

// A ring is a packet socket for one network protocol on every interface. Its queue is memory shared with the kernel
// (packet_mmap.rst, TPACKET_V2): a packet costs no system call, and a flood no memory. TPACKET_V3 delivers whole
// blocks, which makes a lone knock wait for a timer, and recvmmsg copies twice.
type ring struct {
	fd     int
	memory []byte
	size   int // of a frame, a power of two
	next   int // where the next frame is
}

// A frame is a packet in the ring, until it is released.
type frame struct {
	status *uint32
	from   *unix.RawSockaddrLinklayer
	link   []byte // the link's header
	packet []byte // from the network header on
}

// openRing opens a socket that receives nothing until its filter is attached: only then is it bound to a protocol. A
// socket bound to one protocol sees no outgoing packets, and sees one from a bridge's port only once, as the bridge's.
func openRing(protocol uint16, filter func(fd int) error, snap int) (*ring, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	r := &ring{fd: fd, size: frameSize(snap)}
	if err := r.prepare(filter); err != nil {
		r.close()
		return nil, err
	}
	to := unix.SockaddrLinklayer{Protocol: networkOrder(protocol)}
	if err := unix.Bind(fd, &to); err != nil {
		r.close()
		return nil, fmt.Errorf("binding the packet socket: %w", err)
	}
	return r, nil
}

// frameSize returns the power of two that holds snap bytes.
func frameSize(snap int) int {
	size := 256
	for size < frameHead+snap {
		size *= 2
	}
	return size
}

// networkOrder returns v in network byte order.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// prepare sets the filter and shares the memory.
func (r *ring) prepare(filter func(fd int) error) error {
	if err := filter(r.fd); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return fmt.Errorf("choosing the ring's layout: %w", err)
	}
	req := unix.TpacketReq{
		Block_size: ringBlock, Block_nr: ringSize / ringBlock,
		Frame_size: uint32(r.size), Frame_nr: uint32(ringSize / r.size),
	}
	if err := unix.SetsockoptTpacketReq(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("allocating the ring: %w", err)
	}
	memory, err := unix.Mmap(r.fd, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping the ring: %w", err)
	}
	r.memory = memory
	return nil
}

// peek returns the oldest packet, if there is one.
func (r *ring) peek() (frame, bool) {
	slot := r.memory[r.next : r.next+r.size]
	h := (*unix.Tpacket2Hdr)(unsafe.Pointer(unsafe.SliceData(slot)))
	if atomic.LoadUint32(&h.Status)&unix.TP_STATUS_USER == 0 {
		return frame{}, false
	}
	return frame{
		status: &h.Status,
		from:   (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&slot[unix.SizeofTpacket2Hdr])),
		link:   slot[h.Mac:h.Net],
		packet: slot[h.Net : uint32(h.Mac)+h.Snaplen],
	}, true
}

// release gives the frame that peek returned back to the kernel.
func (r *ring) release(f frame) {
	atomic.StoreUint32(f.status, unix.TP_STATUS_KERNEL)
	r.next = (r.next + r.size) % len(r.memory)
}

// drops returns how many packets were dropped since its last call.
func (r *ring) drops() (uint64, error) {
	stats, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, err
	}
	return uint64(stats.Drops), nil
}

func (r *ring) close() {
	if r.memory != nil {
		unix.Munmap(r.memory)
	}
	unix.Close(r.fd)
}
