//go:build arm64 || loong64 || riscv64

package sandbox

import "golang.org/x/sys/unix"

// Newer architectures have one call for each purpose.
var (
	mmaps        = []uintptr{unix.SYS_MMAP}
	runtimeCalls = []call(nil)
	daemonCalls  = calls(unix.SYS_NEWFSTATAT)
	keeperCalls  = []call(nil)
	programCalls = []call(nil)
)
