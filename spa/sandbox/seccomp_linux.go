package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is an allowed system call: with any arguments if mask is zero, otherwise only if the argument has exactly this
// value in the bits of the mask. A filter sees 32 bits at a time; the values used here fit into the lower ones.
type call struct {
	number      uintptr
	argument    uint32
	mask, value uint32
}

// Offsets in struct seccomp_data (seccomp(2)).
const (
	dataNumber    = 0
	dataArch      = 4
	dataArguments = 16
)

// x32 marks calls of the x32 interface, which share the architecture of amd64.
const x32 = 0x40000000

// audit maps the architectures that have a list of calls to the kernel's numbers for them.
var audit = map[string]uint32{
	"386":      unix.AUDIT_ARCH_I386,
	"amd64":    unix.AUDIT_ARCH_X86_64,
	"arm":      unix.AUDIT_ARCH_ARM,
	"arm64":    unix.AUDIT_ARCH_AARCH64,
	"loong64":  unix.AUDIT_ARCH_LOONGARCH64,
	"mips":     unix.AUDIT_ARCH_MIPS,
	"mipsle":   unix.AUDIT_ARCH_MIPSEL,
	"mips64":   unix.AUDIT_ARCH_MIPS64,
	"mips64le": unix.AUDIT_ARCH_MIPSEL64,
	"riscv64":  unix.AUDIT_ARCH_RISCV64,
}

// program returns the filter that allows the calls. A forbidden call kills the process; clone3 fails with ENOSYS (a
// filter cannot see its flags, and callers then fall back to clone); any other call fails with EPERM.
func program(allowed []call, forbidden []uintptr) []bpf.Instruction {
	kill := bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
	allow := bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: audit[runtime.GOARCH], SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
	}
	if runtime.GOARCH == "amd64" {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32, SkipFalse: 1}, kill)
	}
	on := func(number uintptr, then ...bpf.Instruction) {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(number), SkipFalse: uint8(len(then))})
		prog = append(prog, then...)
	}
	for _, c := range allowed {
		if c.mask == 0 {
			on(c.number, allow)
			continue
		}
		on(c.number,
			bpf.LoadAbsolute{Off: dataArguments + 8*c.argument + lowWord(), Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: c.mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.value, SkipFalse: 1},
			allow,
			bpf.LoadAbsolute{Off: dataNumber, Size: 4},
		)
	}
	for _, number := range forbidden {
		on(number, kill)
	}
	on(unix.SYS_CLONE3, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	return append(prog, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
}

// lowWord returns the offset of the lower half of a 64-bit argument.
func lowWord() uint32 {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return 4
	}
	return 0
}

// filter puts the program into force on all threads, irrevocably.
func filter(prog []bpf.Instruction) error {
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return fmt.Errorf("assembling the filter of system calls: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, ins := range raw {
		code[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(code)), Filter: unsafe.SliceData(code)}
	odd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("filtering system calls: %w", errno)
	}
	if odd != 0 {
		return fmt.Errorf("filtering system calls: thread %d has another filter", odd)
	}
	return nil
}

// noFilter returns why system calls cannot be filtered, or nil if they can. The features that it needs exist since
// Linux 4.14.
func noFilter() error {
	if _, ok := audit[runtime.GOARCH]; !ok {
		return fmt.Errorf("there is no list of those of %s", runtime.GOARCH)
	}
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return errors.New("the kernel has no such filters (seccomp: " + errno.Error() + ")")
	}
	return nil
}
