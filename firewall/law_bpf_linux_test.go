package firewall

import (
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tally counts packets delivered to a socket, by the sender's port: a socket filter sees what no answer and no system
// call would show, such as an ACK that a listener ignores. An ordinary user may not load one; then the other signs
// must suffice.
type tally struct {
	fd     int
	counts []byte // 8 bytes a port
}

const tallyPorts = 1 << 16

// bpfAttr is the part of union bpf_attr that is used here.
type bpfAttr [72]byte

func (a *bpfAttr) u32(at int, v uint32) { binary.NativeEndian.PutUint32(a[at:], v) }
func (a *bpfAttr) ptr(at int, p *byte) {
	binary.NativeEndian.PutUint64(a[at:], uint64(uintptr(unsafe.Pointer(p))))
}
func (a *bpfAttr) call(cmd int) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a))
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EAGAIN: // a signal arrived while the program was being checked
		default:
			return -1, os.NewSyscallError("bpf", errno)
		}
	}
}

// newTally makes a map that can be read without system calls.
func newTally() (*tally, error) {
	var a bpfAttr
	a.u32(0, unix.BPF_MAP_TYPE_ARRAY)
	a.u32(4, 4)
	a.u32(8, 8)
	a.u32(12, tallyPorts)
	a.u32(16, unix.BPF_F_MMAPABLE)
	fd, err := a.call(unix.BPF_MAP_CREATE)
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(fd, 0, 8*tallyPorts, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("mmap", err)
	}
	return &tally{fd, b}, nil
}

// attach makes a socket count. The sockets that a TCP listener accepts count with it.
func (t *tally) attach(socket int) error {
	insn := func(op, regs byte, off int16, imm int32) uint64 {
		return uint64(op) | uint64(regs)<<8 | uint64(uint16(off))<<16 | uint64(uint32(imm))<<32
	}
	program := []uint64{
		insn(0xbf, 0x16, 0, 0),              // r6 = r1, the packet from its ports on
		insn(0x28, 0, 0, 0),                 // r0 = the source port
		insn(0x63, 0x0a, -4, 0),             // *(u32 *)(r10 - 4) = r0
		insn(0xbf, 0xa2, 0, 0),              // r2 = r10
		insn(0x07, 0x02, 0, -4),             // r2 += -4
		insn(0x18, 0x11, 0, int32(t.fd)), 0, // r1 = the map
		insn(0x85, 0, 0, 1),     // r0 = bpf_map_lookup_elem(r1, r2)
		insn(0x15, 0x00, 2, 0),  // if r0 == 0 goto +2
		insn(0xb7, 0x01, 0, 1),  // r1 = 1
		insn(0xdb, 0x10, 0, 0),  // lock *(u64 *)r0 += r1
		insn(0xb4, 0x00, 0, -1), // w0 = -1: the whole packet
		insn(0x95, 0, 0, 0),     // return
	}
	license := []byte("GPL\x00")
	var a bpfAttr
	a.u32(0, unix.BPF_PROG_TYPE_SOCKET_FILTER)
	a.u32(4, uint32(len(program)))
	a.ptr(8, (*byte)(unsafe.Pointer(&program[0])))
	a.ptr(16, &license[0])
	fd, err := a.call(unix.BPF_PROG_LOAD)
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return os.NewSyscallError("SO_ATTACH_BPF", unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, fd))
}

// take returns how many packets came from a port, and resets the count.
func (t *tally) take(port uint16) uint64 {
	if t == nil {
		return 0
	}
	b := t.counts[8*int(port):][:8]
	n := binary.NativeEndian.Uint64(b)
	binary.NativeEndian.PutUint64(b, 0)
	return n
}

func (t *tally) clear() {
	if t != nil {
		clear(t.counts)
	}
}

func (t *tally) close() {
	if t != nil {
		unix.Munmap(t.counts)
		unix.Close(t.fd)
	}
}
