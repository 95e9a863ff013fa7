//go:build linux

package sandbox

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// otherInterfaces are ways into the kernel with other call numbers than this architecture's: those of x32 and 386. They
// are prepared before the drop, which forbids executable memory.
func otherInterfaces() map[string]func() error {
	code := []byte{0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3} // mov eax, 20 (getpid); int 0x80; ret
	memory, err := unix.Mmap(-1, 0, len(code), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANON)
	exitOn(err)
	copy(memory, code)
	function := &struct{ code *byte }{&memory[0]}
	compat := *(*func())(unsafe.Pointer(&function))
	return map[string]func() error{
		"call of x32": func() error { return raw(unix.SYS_GETPID | x32) },
		"call of 386": func() error { compat(); return nil },
	}
}
