//go:build linux

package sandbox

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
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
		call386:       func() error { compat(); return nil },
	}
}

// takes386 reports whether the kernel takes calls of 386: without, they are a fault. It runs the smallest 386 program.
func takes386(t *testing.T) bool {
	t.Helper()
	const base, head = 0x10000, 52 + 32
	code := []byte{0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80} // mov eax, 1 (exit); xor ebx, ebx; int 0x80
	elf := append([]byte("\x7fELF\x01\x01\x01"), make([]byte, 9)...)
	put := func(size int, values ...uint32) {
		for _, v := range values {
			elf = append(elf, binary.LittleEndian.AppendUint32(nil, v)[:size]...)
		}
	}
	put(2, 2, 3)                                                                        // an executable, of 386
	put(4, 1, base+head, 52, 0, 0)                                                      // version, entry, program headers
	put(2, 52, 32, 1, 0, 0, 0)                                                          // sizes and counts
	put(4, 1, 0, base, base, uint32(head+len(code)), uint32(head+len(code)), 5, 0x1000) // loaded, to read and execute
	path := filepath.Join(t.TempDir(), "program")
	lab.Must(t, os.WriteFile(path, append(elf, code...), 0o755))
	err := exec.Command(path).Run()
	if err != nil && !errors.Is(err, unix.ENOEXEC) {
		t.Fatal(err)
	}
	return err == nil
}
