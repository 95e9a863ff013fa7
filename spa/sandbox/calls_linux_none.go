//go:build linux && !(386 || amd64 || arm || arm64 || loong64 || mips || mipsle || mips64 || mips64le || riscv64)

package sandbox

// There is no list for this architecture: see noFilter.
var (
	mmaps                                                []uintptr
	runtimeCalls, daemonCalls, keeperCalls, programCalls []call
)
